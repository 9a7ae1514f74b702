-- forget: removes a done batch, all of it. Answers 0 if it still runs.
-- A batch whose results are the arguments of another one that runs is still needed; so is one whose children have not
-- all been told.
-- ARGV: batch
make_room()
if call('EXISTS', K.b(batch)) == 1 and call('HEXISTS', K.b(batch), 'done') == 0 then return 0 end
if call('ZSCORE', K.later, 'free:' .. batch) then return 0 end
for _, child in ipairs(call('SMEMBERS', part(batch, 'kin'))) do
  if call('HGET', K.b(child), 'src') == batch then return 0 end
end
erase(batch)
return 1
