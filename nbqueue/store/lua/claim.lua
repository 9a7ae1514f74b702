-- claim: hands out jobs, from several batches if need be, until `want` is reached.
-- Order: queue by queue; `front`, then `q`, which rotates; within a batch what was handed back before the cursor.
-- The same token again is answered again from what it gave; an earlier one, which comes late, gives nothing. While all is
-- suspended it gives nothing.
-- A worker that meets a suspect, and holds too many to take it, takes nothing else until it can: it makes way, as one
-- worker for each batch (`way` of the worker, `waymaker` of the batch), and not for ever. Else a busy fleet would never
-- run a suspect.
-- A claim that stopped before the end of the lists, and gave nothing, says so in `more`: the next one begins there.
-- Answers {'GONE'} or {'OK', now, grants, skipped, us until something is due or -1, 1 if suspended, 1 if work is left,
-- more or ''}.
-- ARGV: worker token free# want# python host keys unfit at queues...
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
  local used = {}
  if call('EXISTS', part(batch, 'used')) == 1 then
    local fields = {}
    for i, index in ipairs(indexes) do fields[i] = 'r' .. index end
    used = {call('HMGET', part(batch, 'used'), unpack(indexes)), call('HMGET', part(batch, 'used'), unpack(fields))}
  end
  return {batch, v[1], v[2], v[3], indexes, payloads, attempts, solos, v[4] or '', metas, used}
end

local suspended = call('EXISTS', K.suspended)

local function answer(counts, left, more)
  local nearest = call('ZRANGE', K.later, 0, 0, 'WITHSCORES')[2]
  local due = nearest and math.max(0, tonumber(nearest) - now) or -1
  return {'OK', now, grants, counts, due, suspended, left, more}
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
    return answer({}, 1, '0')
  end
  -- Its sender has given it up long ago, and has had the answer of a later one.
  local number, latest = string.match(token, '%d+$'), string.match(tostring(prior[1]), '%d+$')
  if number and latest and tonumber(number) < tonumber(latest) then return answer({}, 1, '') end
end

if suspended == 1 then return answer({}, 1, '') end

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
local hollow = false -- whether a batch has something to hand out, behind more holes than one script passes over
local from, since = string.match(at, '^(%d+) ?(%d*)$') -- where this claim begins, and `versions()` when the first did
from = tonumber(from or 0)
local passed, looked = 0, 0 -- how many entries the lists before have, and how many this claim has looked at
local more -- where the next claim begins, if this one did not come to the end

-- How often work has arrived in all the queues.
local function versions()
  local sum = 0
  for i = queues, #ARGV do sum = sum + (tonumber(call('HGET', K.tally(ARGV[i]), 'version') or '') or 0) end
  return int(sum)
end

local function full() return taken >= want or taken >= MOST.rows or held + taken >= cap or bytes >= MB4 or way end

-- Whether nobody can load a function: looked up once, since there may be many batches of it, and many workers.
local hopeless = {}
local function is_hopeless(queue, key)
  local place = queue .. ' ' .. key
  if hopeless[place] == nil then hopeless[place] = all_refused(queue, key) end
  return hopeless[place]
end

local function misfit(f, queue)
  if not string.find(' ' .. keys .. ' ', ' ' .. f[5] .. ' ', 1, true) then return 'key ' .. f[5] end
  if f[6] ~= python and f[7] ~= host then return 'python ' .. f[6] end
  if unfit ~= '' and string.find(' ' .. unfit .. ' ', ' ' .. f[4] .. ' ', 1, true)
    and not is_hopeless(queue, f[4]) then return 'unfit' end
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

-- Whether a job that is to be handed out is somewhere else: an error in the middle of a script may leave it in two places.
local function elsewhere(batch, index)
  return call('HEXISTS', part(batch, 'run'), index) == 1 or call('HEXISTS', part(batch, 'out'), index) == 1
end

-- Picks from what was handed back, or `only` suspects; those whose cap forbids it now are to go to the end. Nothing is
-- written yet: answers what is to be done once the picks are safe.
local function pick_again(batch, k, picks, big, only)
  local again, void = part(batch, 'again'), part(batch, 'void')
  local voids = call('SCARD', void) > 0
  local seen, whole, later, voided, heavy = 0, 0, {}, {}, false
  crowded = false

  local function look(entry)
    local index, attempt, losses, limit = string.match(entry, '^(%d+) (%d+) (%d+) (%d+)$')
    if not index then return end -- someone else's
    if voids and not voided[index] and call('SISMEMBER', void, index) == 1 then
      voided[index] = true
      voided[#voided + 1] = index
      return
    end
    whole = whole + 1
    limit = tonumber(limit)
    local bound = limit > 0 and math.min(cap, limit) or cap
    local fits = held + taken + #picks + 1 <= bound
    if elsewhere(batch, index) then
      whole = whole - 1
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

  while whole < k and seen < MOST.rows do
    local entries = call('LRANGE', again, seen, seen + math.min(k - whole, MOST.rows - seen) - 1)
    if #entries == 0 then break end
    seen = seen + #entries
    for _, entry in ipairs(entries) do look(entry) end
  end
  return heavy, function()
    if #later > 0 then call('RPUSH', again, unpack(later)) end
    if seen > 0 then call('LTRIM', again, seen, -1) end
    if #voided > 0 then call('SREM', void, unpack(voided)) end
    return seen > whole
  end
end

-- Picks from the cursor on, but for what has an outcome already. Answers as pick_again.
local function pick_new(batch, k, picks, big, cur, n)
  local skip, holes, most = part(batch, 'skip'), {}, #picks + k
  local number = call('SCARD', skip)
  local index, upto = cur, math.min(n, cur + MOST.rows)
  while #picks < most and index < upto and held + taken + #picks < cap do
    if number > #holes and call('SISMEMBER', skip, index) == 1 then
      holes[#holes + 1] = index
    else
      if not light(index, #picks, big) then break end
      weigh(index, big)
      picks[#picks + 1] = {index, 1, 0, 0}
    end
    index = index + 1
  end
  return function()
    if index > cur then call('HSET', K.b(batch), 'cur', index) end
    if #holes > 0 then call('SREM', skip, unpack(holes)) end
    return #holes > 0
  end
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
  call('HSET', part(batch, 'run'), unpack(runs))
  call('SADD', K.held(worker), unpack(names))
  call('HINCRBY', K.b(batch), 'nrun', #picks)
  move(queue, 'queued', 'started', #picks)
  taken = taken + #picks
  gave[#gave + 1] = {batch, indexes}
  grants[#grants + 1] = given
end

local function skip(why, batch)
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
  if f[1] and not f[2] and not misfit(f, f[1]) and call('EXISTS', part(batch, 'again')) == 1 then
    payload = f[8] and part(f[8], 'out') or part(batch, 'args')
    metas = f[9] and part(batch, 'meta')
    local _, move_on = pick_again(batch, MOST.rows, picks, (f[8] or f[9]) and math.huge or tonumber(f[3]), true)
    if #picks > 0 then commit(batch, f[1], picks) end
    move_on()
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
    'meta', 'nrun')
  if not f[1] then return false end
  local n, cur, big = count_of(f[1]), count_of(f[2]), number_of(f[3])
  count_of(f[12] or 0)
  if f[9] and not BASE[f[9]] then error('a batch is held in no way of ours') end
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
  local why = misfit(f, queue)
  if why then
    skip(why, batch)
    return true
  end
  local free_left = math.max(0, free - taken)
  local fair = left * slots / all
  local k = math.max(1, math.min(free_left, math.ceil(fair)), math.floor(fair / 2))
  k = math.min(k, want - taken, quota - taken, MOST.rows - taken)
  if k <= 0 then
    partial = true
    return true
  end
  local picks, heavy, passed_again, passed_new = {}, false, nil, nil
  payload = f[10] and part(f[10], 'out') or part(batch, 'args')
  metas = f[11] and part(batch, 'meta')
  if f[10] or f[11] then big = math.huge end
  crowded = false
  if call('EXISTS', part(batch, 'again')) == 1 then heavy, passed_again = pick_again(batch, k, picks, big) end
  if not heavy and #picks < k and cur < n then passed_new = pick_new(batch, k - #picks, picks, big, cur, n) end
  if #picks > 0 then commit(batch, queue, picks) end
  -- Only now, when they are safe: a job that an error leaves in two places is found again, one in no place is lost.
  local moved = passed_again and passed_again()
  moved = passed_new and passed_new() or moved
  if crowded then begin_way(batch) end
  if left > #picks then
    partial = partial or #picks > 0
    hollow = #picks == 0 and moved
    return true
  end
  call('HDEL', K.b(batch), 'inq')
  return false
end

-- As take. One whose keys are not as we wrote them stays where it is, and is counted: the others are served.
local function try(batch, ...)
  local fine, stays = pcall(take, batch, ...)
  if fine then return stays end
  if is_id(batch) then skip('repair', batch) end
  return is_id(batch)
end

-- Goes through a list of batches, from where the claim before this one has stopped. Those that have nothing to hand
-- out leave it; where it `rotates`, one that was served goes behind the others.
local function walk(list, rotates, queue, all, quota)
  local size = call('LLEN', list)
  local first = math.min(size, math.max(0, from - passed))
  local upto, gone, behind = first, {}, {}

  local function look(batch)
    local before = taken
    local stays = try(batch, queue, all, quota)
    if hollow then return end
    looked = looked + 1
    if not stays or rotates and taken > before then gone[#gone + 1] = upto end
    if stays and rotates and taken > before then behind[#behind + 1] = batch end
    upto = upto + 1
  end

  while upto < size and looked < MOST.entries do
    local some = math.min(MOST.entries - looked, math.max(20, want - taken))
    for _, batch in ipairs(call('LRANGE', list, upto, upto + some - 1)) do
      if full() or taken >= quota or hollow then break end
      look(batch)
    end
    if full() or taken >= quota or hollow then break end
  end
  for start = 1, #behind, MOST.rows do call('RPUSH', list, unpack(behind, start, math.min(#behind, start + MOST.rows - 1))) end
  for _, place in ipairs(gone) do call('LSET', list, place, '') end
  if #gone > 0 then call('LREM', list, #gone, '') end
  upto = upto - #gone
  size = size - #gone
  if hollow or upto < size and looked >= MOST.entries then more = passed + upto end
  passed = passed + size
end

local function serve(queue)
  local all = math.max(all_slots(queue), slots)
  local fair = tonumber(call('HGET', K.tally(queue), 'queued') or '0') * slots / all
  local free_left = math.max(0, free - taken)
  local quota = taken + math.max(1, math.min(free_left, math.ceil(fair)), math.floor(fair / 2))
  if free_left > 0 then quota = math.max(quota, taken + 1) end
  walk(K.front(queue), false, queue, all, quota)
  if not more and not full() and taken < quota then walk(K.q(queue), true, queue, all, quota) end
end

if way and want > 0 and not pcall(end_way) then
  call('HDEL', K.w(worker), 'way')
  way = nil
end
for i = queues, #ARGV do
  if not full() and not partial and not more and not pcall(serve, ARGV[i]) then skip('repair') end
end
if cap < math.huge then call('HSET', K.w(worker), 'cap', cap) end
call('SET', K.claim(worker), cmsgpack.pack({token, gave}))
-- Those that it passed over first; whoever tells of them names a few.
if #skips > 0 then
  if from == 0 then call('HSET', K.w(worker), 'skips', ' ' .. table.concat(skips, ' ', 1, math.min(#skips, 100)) .. ' ') end
elseif from == 0 then
  call('HDEL', K.w(worker), 'skips')
end
if taken > 0 or full() then more = nil end -- from the beginning then: what comes first may have changed
if more then since = since ~= '' and since or versions() end

local left = 0
-- Work that stays is for somebody else: the bell goes on. Who got nothing passes it on once for each arrival of work,
-- or workers that cannot run it would wake each other for ever. What it has seen all of it notes in `dry:<queue>`, with
-- a mark if it held jobs, so that there may have been some that it could have run without them.
local unseen = from > 0 and since ~= versions()
for i = queues, #ARGV do
  local queue = ARGV[i]
  if call('EXISTS', K.q(queue)) == 1 or call('EXISTS', K.front(queue)) == 1 then
    left = 1
    local version = call('HGET', K.tally(queue), 'version') or '0'
    local dry = call('HGET', K.w(worker), 'dry:' .. queue) or ''
    local seen = held > 0 and version .. '~' or version
    if taken > 0 or unseen and not more then
      ring(queue)
    elseif not more and dry ~= seen then
      call('HSET', K.w(worker), 'dry:' .. queue, seen)
      if string.match(dry, '^%d*') ~= version then ring(queue) end
    end
  end
end

local counts = {}
for _, why in ipairs(reasons) do
  counts[#counts + 1] = why
  counts[#counts + 1] = skipped[why]
end
return answer(counts, left, more and more .. ' ' .. since or '')
