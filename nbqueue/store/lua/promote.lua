-- promote: does what is due: closes uploads whose lease lapsed, cancels what waited too long, sweeps what expired, lets
-- run what was to run later, goes on with what was too much for one script.
-- Answers {how many, us until the next due thing or -1}.
-- WITH: cutting dependents pairs
-- ARGV:
make_room()

local doing = {}

function doing.upload(batch)
  if call('HGET', K.b(batch), 'open') == '1' then
    call('HSET', K.b(batch), 'open', 0, 'cut', 1)
    local v = call('HMGET', K.b(batch), 'session', 'deps')
    happened({batch = batch, deps = v[2]}, 'grow')
    finish(batch)
    call('PUBLISH', K.hint(v[1]), batch)
  end
  return true
end

-- While arguments arrive, the time starts again with each part.
function doing.ttl(batch)
  local f = facts(batch)
  if not f or f.hold then return true end
  if f.open == '1' and not f.src then
    arm_ttl(f)
    return false
  end
  local done, more = cut_waiting(f, 'expired')
  touched = touched + done
  finish(batch)
  return not more
end

function doing.sweep(batch)
  local exp = call('HGET', K.b(batch), 'exp')
  if exp and tonumber(exp) > now then return true end
  if exp or call('EXISTS', K.b(batch)) == 0 then erase(batch) end
  return true
end

-- A batch's own time, or that of one of its jobs ("<batch>:<index>").
function doing.run(place)
  local batch, index = string.match(place, '^([^:]*):?(%d*)$')
  local f = facts(batch)
  if not f then return true end
  if index == '' then
    if f.hold == 'S' then release(f) end
    return true
  end
  local entry = call('HGET', part(batch, 'park'), index)
  if not entry then return true end
  call('RPUSH', part(batch, 'again'), index .. ' ' .. entry)
  call('HDEL', part(batch, 'park'), index)
  count(f, 'npark', -1)
  move(f.queue, 'scheduled', base(f), 1)
  if not f.hold then arm_ttl(f) end
  offer(f)
  hint(f)
  return true
end

-- Children of a batch, some at once.
function doing.free(batch)
  local f = facts(batch)
  local from = call('HGET', K.b(batch), 'fcur')
  if not f then return true end
  local members = call('ZRANGEBYLEX', part(batch, 'then'), from and '(' .. from or '-', '+', 'LIMIT', 0, MOST.children)
  for _, member in ipairs(members) do
    if string.sub(member, 1, 1) ~= '=' then look(f, member) end
  end
  if #members == MOST.children then
    call('HSET', K.b(batch), 'fcur', members[MOST.children])
    return false
  end
  call('HDEL', K.b(batch), 'fcur')
  return true
end

doing.scan = scan

function doing.fall(batch)
  local f = facts(batch)
  return not f or not f.hold or f.nbad == 0 or fall(f)
end

function doing.rise(batch)
  local f = facts(batch)
  return not f or not f.fell or f.nbad > 0 or rise(f)
end

local done = 0
for _, item in ipairs(call('ZRANGEBYSCORE', K.later, '-inf', int(now), 'LIMIT', 0, MOST.due)) do
  local what, batch = string.match(item, '^(%a+):(.*)$')
  call('ZREM', K.later, item)
  if doing[what] then
    local fine, over = pcall(doing[what], batch)
    -- What is not finished goes on at once, unless it has a new time already; what is damaged is tried again later.
    if not fine then
      call('ZADD', K.later, 'NX', int(now + 60000000), item)
    elseif not over then
      call('ZADD', K.later, 'NX', int(now), item)
    end
  end
  done = done + 1
  if touched > MOST.touched then break end
end
drain()
local nearest = call('ZRANGE', K.later, 0, 0, 'WITHSCORES')
return {done, nearest[2] and math.max(0, tonumber(nearest[2]) - now) or -1}
