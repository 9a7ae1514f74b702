-- resume: claim gives again; every queue's bell rings.
-- ARGV:
make_room()
call('DEL', K.suspended)
for _, queue in ipairs(call('SMEMBERS', K.queues)) do ring(queue) end
return 1
