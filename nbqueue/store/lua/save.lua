-- save: the meta of a job, or the echoes of its callbacks. With a token, only while that claim holds the job.
-- ARGV: batch index data token what
make_room()
local f = facts(batch)
if not f then return 0 end
if token ~= '' then
  local run = call('HGET', part(batch, 'run'), index)
  if not run or lease_of(run) ~= token then return 0 end
end
if tonumber(index) >= f.n then return 0 end
call('HSET', part(batch, what), index, data)
if what == 'meta' then call('HSET', K.b(batch), 'meta', '1') end
if f.exp then call('PEXPIREAT', part(batch, what), int(f.exp / 1000 + 60000)) end
hint(f)
return 1
