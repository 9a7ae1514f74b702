-- claim: hands out jobs, from several batches if need be, until `want` is reached.
-- Order: queue by queue; `front`, then `q`, which rotates; within a batch what was handed back before the cursor.
-- The same token again is answered again from what it gave; an earlier one, which comes late, gives nothing. While all is
-- suspended it gives nothing.
-- A worker that meets a suspect, and holds too many to take it, takes nothing else until it can: it makes way, as one
-- worker for each batch (`way` of the worker, `waymaker` of the batch), and not for ever. Else a busy fleet would never
-- run a suspect.
-- Answers {'GONE'} or {'OK', now, grants, skipped, us until something is due or -1, 1 if suspended, 1 if work is left}.
-- ARGV: worker token free# want# python host keys unfit queues...
make_room()
outage()
if not alive(worker) then return {'GONE'} end

local MB4 = 4194304
local grants, skipped, reasons = {}, {}, {}

-- What is handed out of a batch; read before anything is written, so that a damaged one changes nothing.
local function gift(batch, indexes, attempts, solos)
  local v = call('HMGET', K.b(batch), 'queue', 'spec', 'key', 'src', 'meta')
  local payloads = call('HMGET', v[4] and part(v[4], 'out') or part(batch, 'args'), unpack(indexes))
  local metas = v[5] and call('HMGET', part(batch, 'meta'), unpack(indexes)) or {}
  return {batch, v[1], v[2], v[3], indexes, payloads, attempts, solos, v[4] or '', metas}
end

local suspended = call('EXISTS', K.suspended)

local function answer(counts, left)
  local nearest = call('ZRANGE', K.later, 0, 0, 'WITHSCORES')[2]
  return {'OK', now, grants, counts, nearest and math.max(0, tonumber(nearest) - now) or -1, suspended, left}
end

-- What the same claim gave of a batch before.
local function again_from(batch, chosen)
  local indexes, attempts, solos = {}, {}, {}
  for i, run in ipairs(call('HMGET', part(batch, 'run'), unpack(chosen))) do
    local holder, attempt, _, cap = lease_of(run or '')
    if holder == token then
      indexes[#indexes + 1] = chosen[i]
      attempts[#attempts + 1] = attempt
      solos[#solos + 1] = cap > 0 and 1 or 0
    end
  end
  if #indexes > 0 then grants[#grants + 1] = gift(batch, indexes, attempts, solos) end
end

local prior = guarded(function() return cmsgpack.unpack(call('GET', K.claim(worker))) end)
if type(prior) == 'table' then
  if prior[1] == token then
    for _, gave in ipairs(prior[2]) do guarded(again_from, gave[1], gave[2]) end
    return answer({}, 1)
  end
  -- Its sender has given it up long ago, and has had the answer of a later one.
  local number, latest = string.match(token, '%d+$'), string.match(tostring(prior[1]), '%d+$')
  if number and latest and tonumber(number) < tonumber(latest) then return answer({}, 1) end
end

if suspended == 1 then return answer({}, 1) end

local held = call('SCARD', K.held(worker))
local own = call('HMGET', K.w(worker), 'slots', 'cap', 'way')
local slots, cap = tonumber(own[1]), tonumber(own[2] or 'inf') or math.huge
if held == 0 and own[2] then
  call('HDEL', K.w(worker), 'cap')
  cap = math.huge
end
local taken, bytes, gave, skips = 0, 0, {}, {}
local partial = false -- whether a queue has more for us than its share: those behind it wait
local way = own[3] -- the batch with a suspect for which this worker makes way
local crowded = false -- whether a suspect was met that may not be held with so many others

local function full() return taken >= want or taken >= 1000 or held + taken >= cap or bytes >= MB4 or way end

local function misfit(batch, f, queue)
  if not string.find(' ' .. keys .. ' ', ' ' .. f[5] .. ' ', 1, true) then return 'key ' .. f[5] end
  if f[6] ~= python and f[7] ~= host then return 'python ' .. f[6] end
  if unfit ~= '' and string.find(' ' .. unfit .. ' ', ' ' .. f[4] .. ' ', 1, true)
    and not all_refused(queue, f[4]) then return 'unfit' end
end

-- Where the arguments of the batch in hand are: its own, or the outcomes of its source; and its metas, if it has any.
local payload, metas

local function size(index)
  return call('HSTRLEN', payload, index) + (metas and call('HSTRLEN', metas, index) or 0)
end

-- Whether one job more keeps the answer under 4 MB; the first always goes. `big` is the most that a job can have.
local function light(index, chosen, big)
  if taken + chosen == 0 or big * 1000 <= MB4 / 4 then return true end
  return bytes + size(index) <= MB4
end

local function weigh(index, big)
  bytes = bytes + (big * 1000 <= MB4 / 4 and big or size(index))
end

-- Takes entries from what was handed back, but for those that count no more.
local function pop_again(batch, k)
  local again, void = part(batch, 'again'), part(batch, 'void')
  local entries = call('LPOP', again, k) or {}
  if call('EXISTS', void) == 0 then return entries end
  local good, looked = {}, 0
  while #entries > 0 and looked < 1000 do
    looked = looked + #entries
    for _, entry in ipairs(entries) do
      if call('SREM', void, string.match(entry, '^%d+')) == 0 then good[#good + 1] = entry end
    end
    entries = #good < k and call('LPOP', again, k - #good) or {}
  end
  return good
end

-- Picks from what was handed back, or `only` suspects. Those whose cap forbids it now go to the end.
local function pick_again(batch, k, picks, big, only)
  local later, heavy = {}, false
  crowded = false
  for _, entry in ipairs(pop_again(batch, k)) do
    local index, attempt, losses, limit = string.match(entry, '^(%d+) (%d+) (%d+) (%d+)$')
    limit = tonumber(limit or 0)
    local bound = limit > 0 and math.min(cap, limit) or cap
    local fits = held + taken + #picks + 1 <= bound
    if not index then
      -- someone else's
    elseif only and (limit == 0 or taken + #picks >= want) then
      later[#later + 1] = entry
    elseif heavy or not fits or not light(index, #picks, big) then
      heavy = heavy or fits
      crowded = crowded or (limit > 0 and not fits)
      later[#later + 1] = entry
    else
      cap = bound
      weigh(index, big)
      picks[#picks + 1] = {tonumber(index), attempt + 1, losses, limit}
    end
  end
  if #later > 0 then call('RPUSH', part(batch, 'again'), unpack(later)) end
  return heavy
end

-- Picks from the cursor on, but for what has an outcome already. Answers where the cursor stands then.
local function pick_new(batch, k, picks, big, cur, n)
  local skip = part(batch, 'skip')
  local holes = call('SCARD', skip)
  local index, looked = cur, 0
  while #picks < k and index < n and looked < 1000 and held + taken + #picks < cap do
    looked = looked + 1
    if holes > 0 and call('SREM', skip, index) == 1 then
      holes = holes - 1
    else
      if not light(index, #picks, big) then break end
      weigh(index, big)
      picks[#picks + 1] = {index, 1, 0, 0}
    end
    index = index + 1
  end
  return index
end

local function commit(batch, queue, picks)
  local indexes, attempts, solos, runs, names = {}, {}, {}, {}, {}
  local since = ' ' .. int(now) .. ' '
  local plain = token .. ' 1' .. since .. '0 0'
  local odd = false
  for i, pick in ipairs(picks) do
    local index, attempt, losses, limit = pick[1], pick[2], pick[3], pick[4]
    indexes[i] = index
    attempts[i] = attempt
    solos[i] = limit ~= 0 and 1 or 0
    odd = odd or attempt ~= 1 or limit ~= 0
    runs[2 * i - 1] = index
    if attempt == 1 and losses == 0 and limit == 0 then
      runs[2 * i] = plain
    else
      runs[2 * i] = token .. ' ' .. attempt .. since .. losses .. ' ' .. limit
    end
    names[i] = batch .. ':' .. index
  end
  local given = gift(batch, indexes, odd and attempts or {}, odd and solos or {})
  call('HINCRBY', K.b(batch), 'nrun', #picks)
  call('HSET', part(batch, 'run'), unpack(runs))
  call('SADD', K.held(worker), unpack(names))
  move(queue, 'queued', 'started', #picks)
  taken = taken + #picks
  gave[#gave + 1] = {batch, indexes}
  grants[#grants + 1] = given
end

local function skip(batch, why)
  skips[#skips + 1] = batch
  if not skipped[why] then reasons[#reasons + 1] = why end
  skipped[why] = (skipped[why] or 0) + 1
end

-- From now on this worker takes nothing but the suspects of a batch, unless another one does so already. One whose
-- jobs do not end leaves it to the next after a time, twice as long for each: where all jobs are long, one must wait.
local function begin_way(batch)
  local v = call('HMGET', K.b(batch), 'waymaker', 'wayuntil', 'waytime')
  local maker, time = v[1], tonumber(v[3] or '10000000')
  if maker and maker ~= worker and alive(maker) and call('HGET', K.w(maker), 'way') == batch then
    if now < tonumber(v[2] or '0') then return end
    time = math.min(2 * time, 86400000000)
  end
  call('HSET', K.b(batch), 'waymaker', worker, 'wayuntil', int(now + time), 'waytime', int(time))
  call('HSET', K.w(worker), 'way', batch)
  way = batch
end

-- Takes the suspects for which this worker has made way, if it holds few enough by now; else it waits on.
local function end_way()
  local batch = way
  local f = call('HMGET', K.b(batch), 'queue', 'hold', 'big', 'key', 'signer', 'python', 'host', 'src', 'meta')
  local picks = {}
  crowded = false
  if f[1] and not f[2] and not misfit(batch, f, f[1]) and call('EXISTS', part(batch, 'again')) == 1 then
    payload = f[8] and part(f[8], 'out') or part(batch, 'args')
    metas = f[9] and part(batch, 'meta')
    pick_again(batch, 1000, picks, (f[8] or f[9]) and math.huge or tonumber(f[3]), true)
    if #picks > 0 then commit(batch, f[1], picks) end
  end
  if #picks > 0 or not crowded or call('HGET', K.b(batch), 'waymaker') ~= worker then
    call('HDEL', K.w(worker), 'way')
    way = nil
  end
end

-- Takes a share of one batch. Answers whether it has still something to hand out.
local function take(batch, queue, all, quota)
  if not is_id(batch) then return false end
  local f = call('HMGET', K.b(batch), 'n', 'cur', 'big', 'key', 'signer', 'python', 'host', 'ttl', 'hold', 'src',
    'meta')
  if not f[1] then return false end
  local n, cur, big = tonumber(f[1]), tonumber(f[2]), tonumber(f[3])
  if n < 0 or cur < 0 or math.max(n, cur) >= 4294967296 then error('no batch has so many jobs') end
  local left = waiting(batch, n, cur)
  if left <= 0 or f[9] then
    call('HDEL', K.b(batch), 'inq')
    return false
  end
  if f[8] then
    -- What has waited too long is not begun: promote, which is due for it, cancels it.
    local due = call('ZSCORE', K.later, 'ttl:' .. batch)
    if due and tonumber(due) <= now then return true end
  end
  local why = misfit(batch, f, queue)
  if why then
    skip(batch, why)
    return true
  end
  local free_left = math.max(0, free - taken)
  local fair = left * slots / all
  local k = math.max(1, math.min(free_left, math.ceil(fair)), math.floor(fair / 2))
  k = math.min(k, want - taken, quota - taken, 1000 - taken)
  if k <= 0 then
    partial = true
    return true
  end
  local picks = {}
  payload = f[10] and part(f[10], 'out') or part(batch, 'args')
  metas = f[11] and part(batch, 'meta')
  if f[10] or f[11] then big = math.huge end
  crowded = false
  local heavy = call('EXISTS', part(batch, 'again')) == 1 and pick_again(batch, k, picks, big)
  if not heavy and cur < n then
    local upto = pick_new(batch, k, picks, big, cur, n)
    if upto > cur then call('HSET', K.b(batch), 'cur', upto) end
  end
  if #picks > 0 then commit(batch, queue, picks) end
  if crowded then begin_way(batch) end
  if left > #picks then
    partial = true
    return true
  end
  call('HDEL', K.b(batch), 'inq')
  return false
end

-- As take. One whose keys are not as we wrote them stays where it is, and is counted: the others are served.
local function try(batch, ...)
  local fine, more = pcall(take, batch, ...)
  if fine then return more end
  if is_id(batch) then skip(batch, 'repair') end
  return is_id(batch)
end

local function serve(queue)
  local all = math.max(all_slots(queue), slots)
  local fair = tonumber(call('HGET', K.tally(queue), 'queued') or '0') * slots / all
  local free_left = math.max(0, free - taken)
  local quota = taken + math.max(1, math.min(free_left, math.ceil(fair)), math.floor(fair / 2))
  if free_left > 0 then quota = math.max(quota, taken + 1) end
  for _, batch in ipairs(call('LRANGE', K.front(queue), 0, 99)) do
    if full() then return end
    if not try(batch, queue, all, quota) then call('LREM', K.front(queue), 1, batch) end
  end
  for _ = 1, math.min(call('LLEN', K.q(queue)), math.max(100, want)) do
    if full() or taken >= quota then return end
    local batch = call('LPOP', K.q(queue))
    if try(batch, queue, all, quota) then call('RPUSH', K.q(queue), batch) end
  end
end

if way and want > 0 and not pcall(end_way) then
  call('HDEL', K.w(worker), 'way')
  way = nil
end
for i = queues, #ARGV do
  if not full() and not partial and not pcall(serve, ARGV[i]) then skip(ARGV[i], 'repair') end
end
if cap < math.huge then call('HSET', K.w(worker), 'cap', cap) end
call('SET', K.claim(worker), cmsgpack.pack({token, gave}))
local known = #skips > 0 and ' ' .. table.concat(skips, ' ') .. ' ' or ''
if known ~= '' then
  call('HSET', K.w(worker), 'skips', known)
else
  call('HDEL', K.w(worker), 'skips')
end

local left = 0
-- Work that stays is for somebody else: the bell goes on. Who got nothing passes it on once for each arrival of work,
-- or workers that cannot run it would wake each other for ever.
for i = queues, #ARGV do
  local queue = ARGV[i]
  if call('EXISTS', K.q(queue)) == 1 or call('EXISTS', K.front(queue)) == 1 then
    left = 1
    local version = call('HGET', K.tally(queue), 'version') or '0'
    if taken > 0 then
      ring(queue)
    elseif call('HGET', K.w(worker), 'dry:' .. queue) ~= version then
      call('HSET', K.w(worker), 'dry:' .. queue, version)
      ring(queue)
    end
  end
end

local counts = {}
for _, why in ipairs(reasons) do
  counts[#counts + 1] = why
  counts[#counts + 1] = skipped[why]
end
return answer(counts, left)
