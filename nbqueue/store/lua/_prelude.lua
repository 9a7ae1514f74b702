-- Shared by all scripts: put in front of each by scripts.py.
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Numbers over 14 digits lose their end in a plain `..`.
local function int(x) return string.format('%.0f', x) end
local function part(batch, name) return K.b(batch) .. ':' .. name end

-- The first write must be one that a full server allows: after it, the others pass. Submit and extend do without.
local function make_room() call('DEL', K.room) end

-- What a script does for one of many batches. Where the keys of that batch are not as we wrote them, it alone goes
-- without: the others are served. Answers nothing then, and whoever asks for that batch itself is told.
local function guarded(act, ...)
  local fine, a, b = pcall(act, ...)
  if fine then return a, b end
end

-- Whether an id is one of ours: what else stands in a list of ids was written by someone else.
local function is_id(batch) return string.find(batch, '^[%w_][%w_.@+-]*$') ~= nil end

-- Jobs named "<batch>:<index>", as lists of indexes by batch; other names are passed over.
local function by_batch(names)
  local groups = {}
  for _, job in ipairs(names) do
    local batch, index = string.match(job, '^(.*):(%d+)$')
    if batch then
      groups[batch] = groups[batch] or {}
      table.insert(groups[batch], index)
    end
  end
  return groups
end

-- ---------------------------------------------------------------- workers

-- If nobody at all renewed for 1.5 beats, the server was away: until one lease has passed since it is back, no worker is
-- given up, however many there are. Who does not renew by then had its chance.
-- pulse = "<us of the last renew> <beat ms> <lease ms> <ms until which that wait lasts>". Answers whether the wait is on.
local away
local till = 0

local function wait_on()
  local pulse = call('GET', K.pulse)
  local at, beat, lease, last = string.match(pulse or '', '^(%d+) (%d+) (%d+) (%d+)$')
  if not at then return false end
  till = tonumber(last)
  if now / 1000 < till then return true end
  if now - tonumber(at) <= 1500 * tonumber(beat) then return false end
  if till > 0 and tonumber(at) / 1000 < till - tonumber(lease) then return false end -- none came in that wait
  till = math.floor(now / 1000) + tonumber(lease)
  call('SET', K.pulse, table.concat({at, beat, lease, int(till)}, ' '))
  return true
end

local function outage()
  if away == nil then away = wait_on() end
  return away
end

local function set_pulse(beat, lease)
  local rest = outage() and till or 0
  call('SET', K.pulse, table.concat({int(now), int(beat), int(lease), int(rest)}, ' '))
end

local function alive(worker)
  local score = call('ZSCORE', K.workers, worker)
  if not score or tonumber(score) <= now / 1000 and not outage() then return false end
  local v = call('HMGET', K.w(worker), 'dead', 'slots')
  return not v[1] and v[2] -- one whose record someone has removed joins anew
end

-- The slots of all workers of a queue.
local function all_slots(queue)
  local sum = 0
  for _, slots in ipairs(call('HVALS', K.slots(queue))) do sum = sum + (tonumber(slots) or 0) end
  return sum
end

-- Whether every living worker of a queue has found a function unfit within the last minute, and for long enough.
local function all_refused(queue, key)
  local living = 0
  for _, worker in ipairs(call('HKEYS', K.slots(queue))) do
    if alive(worker) then
      living = living + 1
      local since = call('ZSCORE', K.unfit(key), worker)
      if not since or tonumber(since) < now / 1000 - 60000 then return false end
      local final = call('ZSCORE', K.unfit(key), ':' .. worker)
      if not final or tonumber(final) > now / 1000 then return false end
    end
  end
  return living > 0
end

-- ---------------------------------------------------------------- batches

local FACTS = {'queue', 'session', 'single', 'open', 'n', 'cur', 'nfin', 'nfail', 'ncan', 'done', 'exp', 'front',
  'rttl', 'fttl', 'name', 'signer', 'ttl', 'cuts', 'nonce', 'cut', 'canceled', 'inq', 'key', 'big',
  'hold', 'due', 'src', 'needs', 'deps', 'fell', 'nrun', 'ndef', 'npark', 'nopen', 'nbad'}
local NUMBERS = {done = 1, exp = 1, rttl = 1, fttl = 1, ttl = 1, big = 1, due = 1}
local COUNTS = {n = 1, cur = 1, nrun = 1, nfin = 1, nfail = 1, ncan = 1, ndef = 1, npark = 1, nopen = 1, nbad = 1}
local BASE = {D = 'deferred', S = 'scheduled'}
local FIELD = {F = 'nfin', X = 'nfail', x = 'nfail', C = 'ncan', c = 'ncan'}
local WORD = {F = 'finished', X = 'failed', x = 'failed', C = 'canceled', c = 'canceled'}

-- A number, or how many jobs, as we wrote it. What else stands there is an error, before anything of the batch changes.
local function number_of(value)
  return tonumber(value) or error('a field of a batch is no number')
end

local function count_of(value)
  local number = number_of(value)
  if number < 0 or number >= 4294967296 then error('no batch has so many jobs') end
  return number
end

-- A batch's small fields, or nil if it is not there (or expired, which readers take for the same).
local function facts(batch)
  local values = call('HMGET', K.b(batch), unpack(FACTS))
  if not values[1] then return nil end
  local f = {batch = batch}
  for i, name in ipairs(FACTS) do
    local value = values[i]
    if value and NUMBERS[name] then value = number_of(value) end
    if value and COUNTS[name] then value = count_of(value) end
    f[name] = value or nil
  end
  if f.exp and f.exp <= now then return nil end
  if f.src and not is_id(f.src) then error('the source of a batch is none of ours') end
  for _, name in ipairs({'ndef', 'npark', 'nopen', 'nbad'}) do f[name] = f[name] or 0 end
  return f
end

-- Jobs that could be handed out now, or once the batch is held no more.
local function waiting(batch, n, cur)
  return n - cur - call('SCARD', part(batch, 'skip')) + call('LLEN', part(batch, 'again'))
    - call('SCARD', part(batch, 'void'))
end

-- The state of these jobs.
local function base(f) return BASE[f.hold] or 'queued' end

local function count(f, field, by)
  if by ~= 0 then call('HINCRBY', K.b(f.batch), field, by) end
end

local function move(queue, from, to, by)
  if by == 0 then return end
  if from then call('HINCRBY', K.tally(queue), from, -by) end
  if to then call('HINCRBY', K.tally(queue), to, by) end
end

-- A worker of every queue there is learns of a new one.
local function know(queue)
  if call('SADD', K.queues, queue) == 0 then return end
  for _, worker in ipairs(call('ZRANGE', K.workers, 0, 99)) do
    call('RPUSH', K.mail(worker), 'look')
    call('PEXPIRE', K.mail(worker), 3600000)
  end
end

local function ring(queue)
  if call('EXISTS', K.bell(queue)) == 0 then
    call('RPUSH', K.bell(queue), '1')
    call('PEXPIRE', K.bell(queue), 3600000)
  end
end

-- Puts a batch with work into its list, once, and wakes a worker.
local function offer(f)
  if f.hold then return end
  if f.inq ~= '1' then
    call('HSET', K.b(f.batch), 'inq', '1')
    f.inq = '1'
    if f.front == '1' then call('LPUSH', K.front(f.queue), f.batch) else call('RPUSH', K.q(f.queue), f.batch) end
  end
  call('HINCRBY', K.tally(f.queue), 'version', 1)
  ring(f.queue)
end

local function hint(f) call('PUBLISH', K.hint(f.session), f.batch) end

-- Tells what happened: entries of the batch's log, or the batch itself in the session's log.
local function tell(f, entries)
  if #entries == 0 then return end
  if f.single == '1' then
    call('RPUSH', K.log(f.session), f.batch)
    call('PEXPIRE', K.log(f.session), 691200000)
  else
    call('RPUSH', part(f.batch, 'log'), unpack(entries))
  end
  hint(f)
end

-- What happened in batches that others depend on: {batch, 'all'} it was done, or is no more; {batch, 'jobs', items} with
-- {index, F X C or r for withdrawn}; {batch, 'range', lo} many at once; {batch, 'grow'} n or open changed. Scripts with
-- _dependents.lua end with drain(), which acts on it.
local pending = {}

local function happened(f, what, detail)
  if f.deps then pending[#pending + 1] = {f.batch, what, detail} end
end

-- The batches that a batch depends on.
local function parents(batch, src)
  local found, seen = {}, {}
  for _, need in ipairs(call('HKEYS', part(batch, 'waits'))) do
    local parent = string.match(need, '^[^:]+:[^:]+:(.*)$')
    if not seen[parent] then found[#found + 1] = parent end
    seen[parent] = true
  end
  if src and not seen[src] then found[#found + 1] = src end
  return found
end

-- ---------------------------------------------------------------- outcomes

local function head(letter, attempt)
  return letter .. struct.pack('>I2', math.min(attempt, 65535))
end

-- An outcome that a script makes: a small letter and a plain note (it cannot sign).
local function note(letter, attempt, cause, worker, host)
  return head(letter, attempt) .. cmsgpack.pack({cause, now, worker, host})
end

-- Writes such outcomes: items = {index, attempt, worker, .., .., host}, all coming from one state; the caller counts them.
local function conclude(f, letter, cause, items)
  if #items == 0 then return end
  local writes, names, told = {}, {}, {}
  for i, item in ipairs(items) do
    writes[2 * i - 1] = item[1]
    writes[2 * i] = note(letter, item[2], cause, item[3] or '', item[6] or '')
    names[i] = tostring(item[1])
    if f.deps then told[i] = {names[i], string.upper(letter)} end
  end
  call('HSET', part(f.batch, 'out'), unpack(writes))
  if letter == 'x' then call('SADD', part(f.batch, 'bad'), unpack(names)) end
  count(f, FIELD[letter], #items)
  tell(f, names)
  happened(f, 'jobs', told)
end

-- A name expires 30 days after the last batch that bears it, and not while one of them runs.
local function bound_name(name)
  local last = 0
  for _, batch in ipairs(call('HVALS', K.name(name))) do
    local exp = call('HGET', K.b(batch), 'exp')
    last = math.max(last, exp and tonumber(exp) or call('EXISTS', K.b(batch)) == 1 and math.huge or 0)
  end
  if last == math.huge then
    call('PERSIST', K.name(name))
  else
    call('PEXPIREAT', K.name(name), int(math.max(last, now) / 1000 + 2592000000))
  end
end

local ENDS = {'rttl', 'fttl', 'queue', 'name', 'nfail', 'ncan', 'deps', 'needs', 'session', 'src', 'hold'}

-- From when on a done batch is expired: never while others that are not done depend on it. `v` has its ENDS.
local function set_end(batch, v)
  local key, queue, failed = K.b(batch), v[3], tonumber(v[5])
  if v[7] and call('EXISTS', part(batch, 'kin')) == 1 then
    call('ZADD', K.ended(queue), '+inf', batch)
    if failed > 0 then call('ZADD', K.failed(queue), '+inf', batch) end
    return
  end
  local ttl = tonumber(v[1])
  if failed + tonumber(v[6]) > 0 then ttl = math.max(ttl, tonumber(v[2])) end
  local exp = int(now + ttl * 1000000)
  call('HSET', key, 'exp', exp)
  call('ZADD', K.batches, exp, batch)
  call('ZADD', K.ended(queue), exp, batch)
  call('ZADD', K.later, exp, 'sweep:' .. batch)
  if failed > 0 then call('ZADD', K.failed(queue), exp, batch) end
  -- The sweep at `exp` removes all of it; these only bound what stays if nobody ever sweeps.
  local at = int(math.floor(now / 1000 + ttl * 1000) + 60000)
  for _, name in ipairs(PARTS) do call('PEXPIREAT', part(batch, name), at) end
  for _, name in ipairs((v[7] or v[8]) and LINKS or {}) do call('PEXPIREAT', part(batch, name), at) end
  call('PEXPIREAT', key, int(math.floor(now / 1000 + ttl * 1000) + 2592000000))
  if v[4] then bound_name(v[4]) end
end

-- The end of a done batch is lifted: it runs again, or others need it.
local function lift_end(batch)
  local key = K.b(batch)
  local v = call('HMGET', key, 'exp', 'queue', 'name')
  if not v[1] then return end
  call('HDEL', key, 'exp')
  call('PERSIST', key)
  for _, names in ipairs({PARTS, LINKS}) do
    for _, name in ipairs(names) do call('PERSIST', part(batch, name)) end
  end
  if v[3] then bound_name(v[3]) end
  call('ZREM', K.later, 'sweep:' .. batch)
  call('ZADD', K.batches, '+inf', batch)
  call('ZADD', K.ended(v[2]), 'XX', '+inf', batch)
  call('ZADD', K.failed(v[2]), 'XX', '+inf', batch)
end

-- A child that is not done needs its parent; once it is done it does not.
local function adopt(parent, child)
  local exp = call('HGET', K.b(parent), 'exp')
  if call('EXISTS', K.b(parent)) == 0 or exp and tonumber(exp) <= now then return end
  call('SADD', part(parent, 'kin'), child)
  lift_end(parent)
end

local function dismiss(parent, child)
  if call('SREM', part(parent, 'kin'), child) == 0 or call('EXISTS', part(parent, 'kin')) == 1 then return end
  local v = call('HMGET', K.b(parent), 'done', 'exp')
  if v[1] and not v[2] then set_end(parent, call('HMGET', K.b(parent), unpack(ENDS))) end
end

-- Once every job of a closed batch has an outcome: it is done, and will expire.
local function finish(batch)
  local key = K.b(batch)
  local v = call('HMGET', key, 'open', 'n', 'nfin', 'nfail', 'ncan', 'done')
  if v[1] ~= '0' or v[6] then return end
  if tonumber(v[3]) + tonumber(v[4]) + tonumber(v[5]) < tonumber(v[2]) then return end
  local w = call('HMGET', key, unpack(ENDS))
  call('HSET', key, 'done', int(now))
  if w[11] then call('HDEL', key, 'hold') end
  call('ZREM', K.open(w[3]), batch)
  call('ZREM', K.later, 'ttl:' .. batch, 'upload:' .. batch, 'run:' .. batch)
  set_end(batch, w)
  call('PUBLISH', K.hint(w[9]), batch)
  happened({batch = batch, deps = w[7]}, 'all')
  if w[8] then
    for _, parent in ipairs(parents(batch, w[10])) do dismiss(parent, batch) end
  end
end

-- A done batch runs again.
local function reopen(f)
  if not f.done then return end
  call('HDEL', K.b(f.batch), 'done')
  lift_end(f.batch)
  call('ZREM', K.ended(f.queue), f.batch)
  call('ZREM', K.failed(f.queue), f.batch)
  call('ZADD', K.open(f.queue), int(now), f.batch)
  f.done, f.exp = nil, nil
  happened(f, 'all')
  if f.needs then
    for _, parent in ipairs(parents(f.batch, f.src)) do adopt(parent, f.batch) end
  end
end

-- Jobs that may wait at most `ttl` seconds: from now on.
local function arm_ttl(f)
  if f.ttl then call('ZADD', K.later, int(now + f.ttl * 1000000), 'ttl:' .. f.batch) end
end

-- Every key of a batch, and its part of the tallies.
local function erase(batch)
  local key = K.b(batch)
  local v = call('HMGET', key, 'queue', 'nfin', 'nfail', 'ncan', 'name', 'signer', 'needs', 'src')
  if v[1] then
    move(v[1], 'finished', nil, tonumber(v[2]))
    move(v[1], 'failed', nil, tonumber(v[3]))
    move(v[1], 'canceled', nil, tonumber(v[4]))
    call('ZREM', K.failed(v[1]), batch)
    call('ZREM', K.ended(v[1]), batch)
    call('ZREM', K.open(v[1]), batch)
    if v[5] and call('HGET', K.name(v[5]), v[6]) == batch then
      call('HDEL', K.name(v[5]), v[6])
      bound_name(v[5])
    end
  end
  if v[7] then
    for _, need in ipairs(call('HKEYS', part(batch, 'waits'))) do
      local which, parent = string.match(need, '^([^:]+:[^:]+:)(.*)$')
      call('ZREM', part(parent, 'then'), which .. batch)
    end
    if v[8] then call('ZREM', part(v[8], 'then'), '=:0:' .. batch) end
  end
  call('ZREM', K.batches, batch)
  local items = {}
  for i, what in ipairs({'sweep', 'ttl', 'upload', 'run', 'free', 'scan', 'fall', 'rise'}) do items[i] = what .. ':' .. batch end
  call('ZREM', K.later, unpack(items))
  local keys = {key}
  for _, names in ipairs({PARTS, LINKS}) do
    for _, name in ipairs(names) do keys[#keys + 1] = part(batch, name) end
  end
  call('UNLINK', unpack(keys))
end

-- ---------------------------------------------------------------- held jobs

-- "<token> <attempt> <since> <losses> <cap>" -> token, attempt, losses, cap
local function lease_of(run)
  local token, attempt, _, losses, cap = string.match(run, '^(%S+) (%d+) (%d+) (%d+) (%d+)$')
  return token, tonumber(attempt), tonumber(losses), tonumber(cap)
end

local function worker_of(token) return string.match(token, '^(.*):[^:]*$') or '' end

-- Takes running jobs from their workers (items = {index, attempt, worker}), once they are safe somewhere else.
local function unhand(f, items, by_hint)
  if #items == 0 then return end
  local names, held = {}, {}
  for i, item in ipairs(items) do
    names[i] = tostring(item[1])
    held[item[3]] = held[item[3]] or {}
    table.insert(held[item[3]], f.batch .. ':' .. names[i])
  end
  for worker, jobs in pairs(held) do
    call('SREM', K.held(worker), unpack(jobs))
    if by_hint then
      if call('LLEN', K.mail(worker)) < 8 then call('RPUSH', K.mail(worker), 'look') end
      call('PEXPIRE', K.mail(worker), 3600000)
    end
  end
  call('HDEL', part(f.batch, 'run'), unpack(names))
  count(f, 'nrun', -#items)
end

-- Puts jobs back: items = {index, attempt, worker, losses, cap}.
local function hand_back(f, items)
  if #items == 0 then return end
  table.sort(items, function(a, b) return tonumber(a[1]) < tonumber(b[1]) end)
  local entries = {}
  for i, item in ipairs(items) do
    entries[i] = table.concat({item[1], item[2], item[4], item[5]}, ' ')
  end
  call('RPUSH', part(f.batch, 'again'), unpack(entries))
  move(f.queue, 'started', base(f), #items)
  offer(f)
end

-- Takes jobs from a worker that is no more, batch by batch: `take_back(batch, indexes)`. Those of a batch whose keys are
-- not as we wrote them stay in its name; answers whether there were none.
local function give_up(worker, names, take_back)
  local safe, left = true, {}
  for _, name in ipairs(names) do left[name] = true end
  for batch, indexes in pairs(by_batch(names)) do
    if not pcall(take_back, batch, indexes) then
      safe = false
      for _, index in ipairs(indexes) do left[batch .. ':' .. index] = nil end
    end
  end
  local done = {}
  for name in pairs(left) do done[#done + 1] = name end
  if #done > 0 then call('SREM', K.held(worker), unpack(done)) end
  return safe
end

-- A worker that is no more, but for jobs that cannot be taken from it now: it is tried again in a minute.
local function put_off(worker)
  call('HSETNX', K.w(worker), 'dead', call('SCARD', K.held(worker)))
  call('HDEL', K.w(worker), 'info')
  call('ZADD', K.workers, int(math.floor(now / 1000 + 60000)), worker)
end
