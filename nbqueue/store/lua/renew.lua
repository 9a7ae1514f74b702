-- renew: a worker's heartbeat, and which of its leases stand. Answers -1 if its own has ended, else {now, positions
-- of those that do not stand, how many it holds}.
-- `work` is what it has done so far, "<finished> <failed> <seconds>", or empty where nothing is new.
-- ARGV: worker lease# work entries...
make_room()
outage()
if not alive(worker) then return -1 end
call('ZADD', K.workers, int(math.floor(now / 1000 + lease)), worker)
if work ~= '' then call('HSET', K.w(worker), 'work', work) end
set_pulse(tonumber(call('HGET', K.w(worker), 'beat')) or lease / 6, lease)
local fallen = {}
for i = entries, #ARGV, 3 do
  local run = guarded(call, 'HGET', part(ARGV[i], 'run'), ARGV[i + 1])
  local token = ARGV[i + 2] .. ' '
  if not run or string.sub(run, 1, #token) ~= token then fallen[#fallen + 1] = (i - entries) / 3 end
end
return {now, fallen, call('SCARD', K.held(worker))}
