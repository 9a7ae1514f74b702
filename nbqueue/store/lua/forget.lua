-- forget: removes a done batch, all of it. Answers 0 if it still runs.
-- ARGV: batch
make_room()
if call('EXISTS', K.b(batch)) == 1 and call('HEXISTS', K.b(batch), 'done') == 0 then return 0 end
erase(batch)
return 1
