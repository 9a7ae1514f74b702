-- claim: hands out jobs, from several batches if need be, until `want` is reached.
-- Order: queue by queue; `front`, then `q`, which rotates; within a batch what was handed back before the cursor.
-- The same token again is answered again from what it gave; an earlier one, which comes late, gives nothing. While all is
-- suspended it gives nothing.
-- Answers {'GONE'} or {'OK', now, grants, skipped, us until something is due or -1, 1 if suspended, 1 if work is left}.
-- ARGV: worker token free# want# python host keys unfit queues...
make_room()
outage()
if not alive(worker) then return {'GONE'} end

local MB4 = 4194304
local grants, skipped, reasons = {}, {}, {}

local function grant(batch, indexes, attempts, solos)
  local v = call('HMGET', K.b(batch), 'queue', 'spec', 'key', 'src', 'meta')
  local payloads = call('HMGET', v[4] and part(v[4], 'out') or part(batch, 'args'), unpack(indexes))
  local metas = v[5] and call('HMGET', part(batch, 'meta'), unpack(indexes)) or {}
  grants[#grants + 1] = {batch, v[1], v[2], v[3], indexes, payloads, attempts, solos, v[4] or '', metas}
end

local suspended = call('EXISTS', K.suspended)

local function answer(counts, left)
  local nearest = call('ZRANGE', K.later, 0, 0, 'WITHSCORES')[2]
  return {'OK', now, grants, counts, nearest and math.max(0, tonumber(nearest) - now) or -1, suspended, left}
end

local prior = call('GET', K.claim(worker))
if prior then
  prior = cmsgpack.unpack(prior)
  if prior[1] == token then
    for _, gave in ipairs(prior[2]) do
      local batch, indexes, attempts, solos = gave[1], {}, {}, {}
      for i, run in ipairs(call('HMGET', part(batch, 'run'), unpack(gave[2]))) do
        local holder, attempt, _, cap = lease_of(run or '')
        if holder == token then
          indexes[#indexes + 1] = gave[2][i]
          attempts[#attempts + 1] = attempt
          solos[#solos + 1] = cap > 0 and 1 or 0
        end
      end
      if #indexes > 0 then grant(batch, indexes, attempts, solos) end
    end
    return answer({}, 1)
  end
  -- Its sender has given it up long ago, and has had the answer of a later one.
  if tonumber(string.match(token, '%d+$')) < tonumber(string.match(prior[1], '%d+$')) then return answer({}, 1) end
end

if suspended == 1 then return answer({}, 1) end

local held = call('SCARD', K.held(worker))
local own = call('HMGET', K.w(worker), 'slots', 'cap')
local slots, cap = tonumber(own[1]), tonumber(own[2] or 'inf') or math.huge
if held == 0 and own[2] then
  call('HDEL', K.w(worker), 'cap')
  cap = math.huge
end
local taken, bytes, gave, skips = 0, 0, {}, {}
local partial = false -- whether a queue has more for us than its share: those behind it wait

local function full() return taken >= want or taken >= 1000 or held + taken >= cap or bytes >= MB4 end

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

-- Picks from what was handed back. Suspects whose cap forbids it now go to the end.
local function pick_again(batch, k, picks, big)
  local later, heavy = {}, false
  for _, entry in ipairs(pop_again(batch, k)) do
    local index, attempt, losses, limit = string.match(entry, '^(%d+) (%d+) (%d+) (%d+)$')
    limit = tonumber(limit)
    local bound = limit > 0 and math.min(cap, limit) or cap
    if heavy or held + taken + #picks + 1 > bound or not light(index, #picks, big) then
      heavy = heavy or held + taken + #picks + 1 <= bound
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
  call('HSET', part(batch, 'run'), unpack(runs))
  call('SADD', K.held(worker), unpack(names))
  call('HINCRBY', K.b(batch), 'nrun', #picks)
  move(queue, 'queued', 'started', #picks)
  taken = taken + #picks
  gave[#gave + 1] = {batch, indexes}
  grant(batch, indexes, odd and attempts or {}, odd and solos or {})
end

-- Takes a share of one batch. Answers whether it has still something to hand out.
local function take(batch, queue, all, quota)
  local f = call('HMGET', K.b(batch), 'n', 'cur', 'big', 'key', 'signer', 'python', 'host', 'ttl', 'hold', 'src',
    'meta')
  if not f[1] then return false end
  local n, cur, big = tonumber(f[1]), tonumber(f[2]), tonumber(f[3])
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
    skips[#skips + 1] = batch
    if not skipped[why] then reasons[#reasons + 1] = why end
    skipped[why] = (skipped[why] or 0) + 1
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
  local heavy = call('EXISTS', part(batch, 'again')) == 1 and pick_again(batch, k, picks, big)
  if not heavy and cur < n then
    local upto = pick_new(batch, k, picks, big, cur, n)
    if upto > cur then call('HSET', K.b(batch), 'cur', upto) end
  end
  if #picks > 0 then commit(batch, queue, picks) end
  if left > #picks then
    partial = true
    return true
  end
  call('HDEL', K.b(batch), 'inq')
  return false
end

local function serve(queue)
  local all = math.max(all_slots(queue), slots)
  local fair = tonumber(call('HGET', K.tally(queue), 'queued') or '0') * slots / all
  local free_left = math.max(0, free - taken)
  local quota = taken + math.max(1, math.min(free_left, math.ceil(fair)), math.floor(fair / 2))
  if free_left > 0 then quota = math.max(quota, taken + 1) end
  for _, batch in ipairs(call('LRANGE', K.front(queue), 0, 99)) do
    if full() then return end
    if not take(batch, queue, all, quota) then call('LREM', K.front(queue), 1, batch) end
  end
  for _ = 1, math.min(call('LLEN', K.q(queue)), math.max(100, want)) do
    if full() or taken >= quota then return end
    local batch = call('LPOP', K.q(queue))
    if take(batch, queue, all, quota) then call('RPUSH', K.q(queue), batch) end
  end
end

for i = queues, #ARGV do
  if not full() and not partial then serve(ARGV[i]) end
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
