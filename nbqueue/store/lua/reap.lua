-- reap: takes the jobs of one worker whose lease has ended. They go back uncharged, as suspects:
-- a suspect is handed out only to a worker that holds few (half as many as the lost one did), and only a loss while
-- its worker held nothing else counts. Answers {worker or '', jobs, lost, 1 if waiting, 1 if there is more}.
-- LATER: cutting dependents pairs -> drain
-- ARGV: max_losses#
make_room()
if outage() then return {'', 0, 0, 1, 0} end
local due = call('ZRANGEBYSCORE', K.workers, '-inf', int(math.floor(now / 1000)), 'LIMIT', 0, 2)
local worker = due[1]
if not worker then return {'', 0, 0, 0, 0} end

local held = K.held(worker)
local info = call('HMGET', K.w(worker), 'dead', 'slots', 'queues', 'host')
local size = tonumber(info[1] or call('SCARD', held))
if not info[1] then call('HSET', K.w(worker), 'dead', size) end
local group = math.max(1, math.floor(math.min(size, tonumber(info[2] or '1')) / 2))

local jobs, lost = 0, 0

local function take_back(batch, indexes)
  local f, back, gone = facts(batch), {}, {}
  for i, run in ipairs(f and call('HMGET', part(batch, 'run'), unpack(indexes)) or {}) do
    local token, attempt, losses = lease_of(run or '')
    if token and worker_of(token) == worker then
      if size == 1 then losses = losses + 1 end
      local list = losses >= max_losses and gone or back
      list[#list + 1] = {indexes[i], attempt, worker, losses, group, info[4]}
    end
  end
  if f then
    sound(batch, 'again out bad log')
    hand_back(f, back)
    conclude(f, 'x', 'lost', gone)
    unhand(f, back)
    unhand(f, gone)
    move(f.queue, 'started', 'failed', #gone)
    finish(batch)
  end
  jobs, lost = jobs + #back + #gone, lost + #gone
end

local safe = give_up(worker, call('SRANDMEMBER', held, MOST.rows), take_back)
if #pending > 0 then later().drain() end
local more = #due > 1
if safe and call('EXISTS', held) == 1 then
  more = true
else
  for queue in string.gmatch(info[3] or '', '[^\n]+') do call('HDEL', K.slots(queue), worker) end
  if safe then
    call('ZREM', K.workers, worker)
    call('UNLINK', K.w(worker), K.claim(worker), K.mail(worker))
  else
    put_off(worker)
  end
end
return {worker, jobs, lost, 0, more and 1 or 0}
