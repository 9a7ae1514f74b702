-- cancel: a batch, or rows of it. What waits gets an outcome at once; what runs loses its lease, and its worker a hint.
-- `most` is 0 for the rows that are named; else all of the batch is meant: however many jobs it has (-1), or no more than
-- so many. Answers -1 (no such batch), -2 (it has more jobs than that, and none was canceled) or {how many, 1 if there
-- are more}. With `free` what depends on the one row that is named runs all the same: its need becomes one that allows a
-- failure. Of very many this takes several calls, and the last one cancels.
-- WITH: cutting dependents pairs
-- ARGV: batch most# running free rows...
make_room()
local f = facts(batch)
if not f then return -1 end
if most > 0 and f.n > most then return -2 end
local runs = part(batch, 'run')
sound(batch, 'run out past bad log again void skip redo park ready')
call('HLEN', K.tally(f.queue))

local function stop(indexes)
  local items = {}
  if #indexes == 0 then return 0 end
  for i, run in ipairs(call('HMGET', runs, unpack(indexes))) do
    if run then
      local token, attempt = lease_of(run)
      items[#items + 1] = {indexes[i], attempt, worker_of(token)}
    end
  end
  conclude(f, 'c', 'user', items)
  unhand(f, items, true)
  move(f.queue, 'started', 'canceled', #items)
  return #items
end

local function cancel_all()
  if f.open == '1' then
    call('HSET', K.b(batch), 'open', 0, 'canceled', 1, 'cut', 1)
    call('ZREM', K.later, 'upload:' .. batch)
    happened(f, 'grow')
  end
  local number, more = cut_waiting(f, 'user')
  if not more and f.hold then hold(f, nil) end
  if running == '1' and number < MOST.rows then
    local some = {}
    local found = call('HSCAN', runs, 0, 'COUNT', MOST.rows)[2]
    for i = 1, math.min(#found, 2 * MOST.rows), 2 do some[#some + 1] = found[i] end
    number = number + stop(some)
  end
  return number, more or (running == '1' and call('EXISTS', runs) == 1)
end

local function cancel_rows()
  local going, early, back, parked, deferred = {}, {}, {}, {}, {}
  local seen = {}
  for i = rows, #ARGV do
    local index = ARGV[i]
    local number = tonumber(index)
    if seen[index] or number >= f.n or call('HEXISTS', part(batch, 'out'), index) == 1 then
      -- it does not exist, or has an outcome
    elseif call('HEXISTS', runs, index) == 1 then
      if running == '1' then going[#going + 1] = index end
    elseif call('HEXISTS', part(batch, 'park'), index) == 1 then
      parked[#parked + 1] = {index, tonumber(string.match(call('HGET', part(batch, 'park'), index), '^%d+'))}
      call('HDEL', part(batch, 'park'), index)
      call('ZREM', K.later, 'run:' .. batch .. ':' .. index)
    elseif f.src and call('GETBIT', part(batch, 'ready'), index) == 0 then
      deferred[#deferred + 1] = {index, attempts_of(f, index)}
      call('SETBIT', part(batch, 'ready'), index, 1)
    elseif number >= f.cur then
      early[#early + 1] = {index, 0}
      call('SADD', part(batch, 'skip'), index)
      call('SREM', part(batch, 'redo'), index)
    elseif not in_cut(f.cuts, number) or call('HEXISTS', part(batch, 'past'), index) == 1 then
      back[#back + 1] = index
    end
    seen[index] = true
  end
  local voided = {}
  if #back > 0 then
    -- The attempt of a job handed back is in its entry only. A long list is not searched: the attempt is then unknown,
    -- and the runs that its past holds are the best guess.
    local attempts = {}
    for _, entry in ipairs(call('LRANGE', part(batch, 'again'), 0, 999)) do
      local index, attempt = string.match(entry, '^(%d+) (%d+)')
      attempts[index] = tonumber(attempt)
    end
    for i, index in ipairs(back) do voided[i] = {index, attempts[index] or 0} end
    call('SADD', part(batch, 'void'), unpack(back))
  end
  conclude(f, 'c', 'user', early)
  conclude(f, 'c', 'user', voided)
  move(f.queue, base(f), 'canceled', #early + #voided)
  conclude(f, 'c', 'user', parked)
  count(f, 'npark', -#parked)
  move(f.queue, 'scheduled', 'canceled', #parked)
  conclude(f, 'c', 'user', deferred)
  count(f, 'ndef', -#deferred)
  move(f.queue, 'deferred', 'canceled', #deferred)
  return #early + #voided + #parked + #deferred + stop(going), false
end

-- Whether all who wait for a job, or for its batch of one, allow it a failure by now.
local function forgive(selector)
  local from, list = selector .. ':0:', part(batch, 'then')
  local members = call('ZRANGEBYLEX', list, '[' .. from, '[' .. from .. '\255', 'LIMIT', 0, MOST.children)
  for _, member in ipairs(members) do
    local child = string.sub(member, #from + 1)
    local waits, need = part(child, 'waits'), selector .. ':1:' .. batch
    local is = call('HGET', waits, from .. batch)
    call('ZADD', list, 0, selector .. ':1:' .. child)
    local both = is and call('HSETNX', waits, need, is) == 0
    if both and is ~= 'm' then call('HINCRBY', K.b(child), is == 'o' and 'nopen' or 'nbad', -1) end
    call('HDEL', waits, from .. batch)
    call('ZREM', list, member)
    look(f, selector .. ':1:' .. child)
    if both then decide(child) end -- the need that is left may stand as it did, and the other one held the child
  end
  return #members < MOST.children
end

if free == '1' and not (forgive(ARGV[rows]) and (f.n > 1 or f.open == '1' or forgive('*'))) then
  drain()
  return {0, 1}
end
local number, more
if most ~= 0 then number, more = cancel_all() else number, more = cancel_rows() end
finish(batch)
drain()
return {number, more and 1 or 0}
