-- post: a message into the mail of a worker that lives, where it lies an hour at most. Answers 0 if none of that name
-- lives. The same message is put there once, as long as it was not read.
-- ARGV: worker message
make_room()
if not alive(worker) then return 0 end
if not call('LPOS', K.mail(worker), message) then call('RPUSH', K.mail(worker), message) end
call('PEXPIRE', K.mail(worker), 3600000)
return 1
