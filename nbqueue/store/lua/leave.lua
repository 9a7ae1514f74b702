-- leave: a worker goes. With burst it is refused while there is, or soon may be, work that it would be missed for; while
-- all is suspended nothing is.
-- Answers 0 refused, 1 gone, 2 call again (it held more than one script gives back).
-- ARGV: worker burst
make_room()
local info = call('HMGET', K.w(worker), 'queues', 'dead')
if not info[1] then return 1 end
if info[2] then return 1 end -- it is being reaped
local mine = {}
for queue in string.gmatch(info[1], '[^\n]+') do mine[queue] = true end

-- Whether a queue has work, but for what this worker has seen all of, while it held nothing, and cannot run.
local function has_work(queue)
  if call('EXISTS', K.q(queue), K.front(queue)) == 0 then return false end
  return call('HGET', K.w(worker), 'dry:' .. queue) ~= (call('HGET', K.tally(queue), 'version') or '0')
end

local function due_soon()
  for _, item in ipairs(call('ZRANGEBYSCORE', K.later, '-inf', int(now + 30000000), 'LIMIT', 0, 1000)) do
    local what, batch = string.match(item, '^(%a+):([^:]*)')
    if what ~= 'ttl' and what ~= 'sweep' then
      local queue = guarded(call, 'HGET', K.b(batch), 'queue')
      if queue and mine[queue] then return true end
    end
  end
  return false
end

-- What others hold may fall back: somebody free must stay until then, and not the holder itself, which may be dead.
local function missed(queue)
  local holders, free, both = 0, 0, 0
  for _, other in ipairs(call('HKEYS', K.slots(queue))) do
    if other ~= worker then
      local held = call('SCARD', K.held(other))
      if held > 0 then holders = holders + 1 end
      if alive(other) then
        local slots = tonumber(call('HGET', K.w(other), 'slots') or '0')
        if held < slots then free = free + 1 end
        if held > 0 and held < slots then both = both + 1 end
      elseif held > 0 then
        return true
      end
    end
  end
  return holders > 0 and (free == 0 or free == 1 and both == 1)
end

if burst == '1' then
  if call('EXISTS', K.held(worker)) == 1 then return 0 end
  local idle = call('EXISTS', K.suspended) == 1
  if not idle and due_soon() then return 0 end
  for queue in pairs(idle and {} or mine) do
    if has_work(queue) or missed(queue) then return 0 end
  end
end

local function give_back(batch, indexes)
  local f, items = facts(batch), {}
  for i, run in ipairs(call('HMGET', part(batch, 'run'), unpack(indexes))) do
    if run and f then
      local token, attempt, losses, cap = lease_of(run)
      if worker_of(token) == worker then items[#items + 1] = {indexes[i], attempt, worker, losses, cap} end
    end
  end
  if f then
    sound(batch, 'again')
    hand_back(f, items)
    unhand(f, items)
  end
end

local safe = give_up(worker, call('SRANDMEMBER', K.held(worker), MOST.rows), give_back)
if safe and call('EXISTS', K.held(worker)) == 1 then return 2 end
for queue in pairs(mine) do
  call('HDEL', K.slots(queue), worker)
  if call('EXISTS', K.q(queue)) == 1 or call('EXISTS', K.front(queue)) == 1 then ring(queue) end
end
if not safe then
  put_off(worker)
  return 1
end
call('ZREM', K.workers, worker)
call('UNLINK', K.w(worker), K.claim(worker), K.mail(worker))
return 1
