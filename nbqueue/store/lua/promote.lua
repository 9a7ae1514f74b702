-- promote: does what is due: closes uploads whose lease lapsed, cancels what waited too long, sweeps what expired.
-- Answers {how many, us until the next due thing or -1}.
-- ARGV:
make_room()

local doing = {}

function doing.upload(batch)
  if call('HGET', K.b(batch), 'open') == '1' then
    call('HSET', K.b(batch), 'open', 0, 'cut', 1)
    finish(batch)
    local session = call('HGET', K.b(batch), 'session')
    call('PUBLISH', K.hint(session), batch)
  end
  return true
end

-- While arguments arrive, the time starts again with each part.
function doing.ttl(batch)
  local f = facts(batch)
  if not f then return true end
  if f.open == '1' then
    arm_ttl(f)
    return false
  end
  local _, more = cut_waiting(f, 'expired')
  finish(batch)
  return not more
end

function doing.sweep(batch)
  local exp = call('HGET', K.b(batch), 'exp')
  if exp and tonumber(exp) > now then return true end
  if exp or call('EXISTS', K.b(batch)) == 0 then erase(batch) end
  return true
end

local due = call('ZRANGEBYSCORE', K.later, '-inf', int(now), 'LIMIT', 0, 20)
for _, item in ipairs(due) do
  local what, batch = string.match(item, '^(%a+):(.*)$')
  if not doing[what] or doing[what](batch) then call('ZREM', K.later, item) end
end
local nearest = call('ZRANGE', K.later, 0, 0, 'WITHSCORES')
return {#due, nearest[2] and math.max(0, tonumber(nearest[2]) - now) or -1}
