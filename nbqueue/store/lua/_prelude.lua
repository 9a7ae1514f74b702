-- Shared by all scripts: put in front of each by scripts.py.
local call = redis.call
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Numbers over 14 digits lose their end in a plain `..`.
local function int(x) return string.format('%.0f', x) end
local function part(batch, name) return K.b(batch) .. ':' .. name end

-- The first write must be one that a full server allows: after it, the others pass. Submit and extend do without.
local function make_room() call('DEL', K.room) end

-- ---------------------------------------------------------------- workers

-- If nobody at all renewed for 1.5 beats, the server was away: every worker not yet given up gets one lease more, once.
-- pulse = "<us of the last renew> <beat ms> <lease ms> <ms until which reap waits>". Answers whether the wait is on.
local function outage()
  local pulse = call('GET', K.pulse)
  if not pulse then return false end
  local at, beat, lease, till = string.match(pulse, '^(%d+) (%d+) (%d+) (%d+)$')
  if tonumber(till) > 0 then return now / 1000 < tonumber(till) end
  if now - tonumber(at) <= 1500 * tonumber(beat) then return false end
  local later = int(math.floor(now / 1000) + tonumber(lease))
  for _, worker in ipairs(call('ZRANGEBYSCORE', K.workers, '-inf', later, 'LIMIT', 0, 1000)) do
    if call('HEXISTS', K.w(worker), 'dead') == 0 then call('ZADD', K.workers, later, worker) end
  end
  call('SET', K.pulse, table.concat({at, beat, lease, later}, ' '))
  return true
end

local function set_pulse(beat, lease)
  call('SET', K.pulse, table.concat({int(now), int(beat), int(lease), '0'}, ' '))
end

local function alive(worker)
  local score = call('ZSCORE', K.workers, worker)
  return score and tonumber(score) > now / 1000 and call('HEXISTS', K.w(worker), 'dead') == 0
end

-- The slots of all workers of a queue.
local function all_slots(queue)
  local sum = 0
  for _, slots in ipairs(call('HVALS', K.slots(queue))) do sum = sum + tonumber(slots) end
  return sum
end

-- Whether every living worker of a queue has found a function unfit within the last minute.
local function all_refused(queue, key)
  local living = 0
  for _, worker in ipairs(call('HKEYS', K.slots(queue))) do
    if alive(worker) then
      living = living + 1
      local since = call('ZSCORE', K.unfit(key), worker)
      if not since or tonumber(since) < now / 1000 - 60000 then return false end
    end
  end
  return living > 0
end

-- ---------------------------------------------------------------- batches

local FACTS = {'queue', 'session', 'single', 'open', 'n', 'cur', 'nfin', 'nfail', 'ncan', 'done', 'exp', 'front',
  'rttl', 'fttl', 'name', 'signer', 'ttl', 'cuts', 'nonce', 'cut', 'canceled', 'inq', 'key', 'big'}
local NUMBERS = {n = 1, cur = 1, nfin = 1, nfail = 1, ncan = 1, done = 1, exp = 1, rttl = 1, fttl = 1, ttl = 1, big = 1}
local FIELD = {F = 'nfin', X = 'nfail', x = 'nfail', C = 'ncan', c = 'ncan'}
local WORD = {F = 'finished', X = 'failed', x = 'failed', C = 'canceled', c = 'canceled'}

-- A batch's small fields, or nil if it is not there (or expired, which readers take for the same).
local function facts(batch)
  local values = call('HMGET', K.b(batch), unpack(FACTS))
  if not values[1] then return nil end
  local f = {batch = batch}
  for i, name in ipairs(FACTS) do
    local value = values[i]
    if value and NUMBERS[name] then value = tonumber(value) end
    f[name] = value or nil
  end
  if f.exp and f.exp <= now then return nil end
  return f
end

-- Jobs that could be handed out now.
local function waiting(batch, n, cur)
  return n - cur - call('SCARD', part(batch, 'skip')) + call('LLEN', part(batch, 'again'))
    - call('SCARD', part(batch, 'void'))
end

local function count(f, field, by)
  if by ~= 0 then call('HINCRBY', K.b(f.batch), field, by) end
end

local function move(queue, from, to, by)
  if by == 0 then return end
  if from then call('HINCRBY', K.tally(queue), from, -by) end
  if to then call('HINCRBY', K.tally(queue), to, by) end
end

local function ring(queue)
  if call('EXISTS', K.bell(queue)) == 0 then
    call('RPUSH', K.bell(queue), '1')
    call('PEXPIRE', K.bell(queue), 3600000)
  end
end

-- Puts a batch with work into its list, once, and wakes a worker.
local function offer(f)
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

-- ---------------------------------------------------------------- outcomes

local function head(letter, attempt)
  return letter .. struct.pack('>I2', math.min(attempt, 65535))
end

-- An outcome that a script makes: a small letter and a plain note (it cannot sign).
local function note(letter, attempt, cause, worker)
  return head(letter, attempt) .. cmsgpack.pack({cause, now, worker})
end

-- Writes such outcomes: items = {index, attempt, worker}, all coming from one state; the caller counts them.
local function conclude(f, letter, cause, items)
  if #items == 0 then return end
  local writes, names = {}, {}
  for i, item in ipairs(items) do
    writes[2 * i - 1] = item[1]
    writes[2 * i] = note(letter, item[2], cause, item[3] or '')
    names[i] = tostring(item[1])
  end
  call('HSET', part(f.batch, 'out'), unpack(writes))
  if letter == 'x' then call('SADD', part(f.batch, 'bad'), unpack(names)) end
  count(f, FIELD[letter], #items)
  tell(f, names)
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

-- Once every job of a closed batch has an outcome: it is done, and will expire.
local function finish(batch)
  local key = K.b(batch)
  local v = call('HMGET', key, 'open', 'n', 'nfin', 'nfail', 'ncan', 'done')
  if v[1] ~= '0' or v[6] then return end
  local failed, canceled = tonumber(v[4]), tonumber(v[5])
  if tonumber(v[3]) + failed + canceled < tonumber(v[2]) then return end
  local w = call('HMGET', key, 'rttl', 'fttl', 'queue', 'name', 'session')
  local ttl = tonumber(w[1])
  if failed + canceled > 0 then ttl = math.max(ttl, tonumber(w[2])) end
  local exp = int(now + ttl * 1000000)
  call('HSET', key, 'done', int(now), 'exp', exp)
  call('ZREM', K.open(w[3]), batch)
  call('ZREM', K.later, 'ttl:' .. batch, 'upload:' .. batch)
  call('ZADD', K.batches, exp, batch)
  call('ZADD', K.later, exp, 'sweep:' .. batch)
  if failed > 0 then call('ZADD', K.failed(w[3]), exp, batch) end
  -- The sweep at `exp` removes all of it; these only bound what stays if nobody ever sweeps.
  local at = int(now / 1000 + ttl * 1000 + 60000)
  for _, name in ipairs(PARTS) do call('PEXPIREAT', part(batch, name), at) end
  local last = int(now / 1000 + ttl * 1000 + 2592000000)
  call('PEXPIREAT', key, last)
  if w[4] then bound_name(w[4]) end
  call('PUBLISH', K.hint(w[5]), batch)
end

-- A done batch runs again.
local function reopen(f)
  if not f.done then return end
  call('HDEL', K.b(f.batch), 'done', 'exp')
  call('PERSIST', K.b(f.batch))
  for _, name in ipairs(PARTS) do call('PERSIST', part(f.batch, name)) end
  if f.name then bound_name(f.name) end
  call('ZREM', K.later, 'sweep:' .. f.batch)
  call('ZREM', K.failed(f.queue), f.batch)
  call('ZADD', K.batches, '+inf', f.batch)
  call('ZADD', K.open(f.queue), int(now), f.batch)
  f.done, f.exp = nil, nil
end

-- Jobs that may wait at most `ttl` seconds: from now on.
local function arm_ttl(f)
  if f.ttl then call('ZADD', K.later, int(now + f.ttl * 1000000), 'ttl:' .. f.batch) end
end

-- Every key of a batch, and its part of the tallies.
local function erase(batch)
  local key = K.b(batch)
  local v = call('HMGET', key, 'queue', 'nfin', 'nfail', 'ncan', 'name', 'signer')
  if v[1] then
    move(v[1], 'finished', nil, tonumber(v[2]))
    move(v[1], 'failed', nil, tonumber(v[3]))
    move(v[1], 'canceled', nil, tonumber(v[4]))
    call('ZREM', K.failed(v[1]), batch)
    call('ZREM', K.open(v[1]), batch)
    if v[5] and call('HGET', K.name(v[5]), v[6]) == batch then
      call('HDEL', K.name(v[5]), v[6])
      bound_name(v[5])
    end
  end
  call('ZREM', K.batches, batch)
  call('ZREM', K.later, 'sweep:' .. batch, 'ttl:' .. batch, 'upload:' .. batch)
  for _, name in ipairs(PARTS) do call('UNLINK', part(batch, name)) end
  call('UNLINK', key)
end

-- ---------------------------------------------------------------- held jobs

-- "<token> <attempt> <since> <losses> <cap>" -> token, attempt, losses, cap
local function lease_of(run)
  local token, attempt, _, losses, cap = string.match(run, '^(%S+) (%d+) (%d+) (%d+) (%d+)$')
  return token, tonumber(attempt), tonumber(losses), tonumber(cap)
end

local function worker_of(token) return string.match(token, '^(.*):[^:]*$') or '' end

-- Takes running jobs from their workers (items = {index, attempt, worker}).
local function unhand(f, items, by_hint)
  if #items == 0 then return end
  local names, told = {}, {}
  for i, item in ipairs(items) do
    names[i] = tostring(item[1])
    call('SREM', K.held(item[3]), f.batch .. ':' .. names[i])
    if by_hint and not told[item[3]] then
      told[item[3]] = true
      if call('LLEN', K.mail(item[3])) < 8 then call('RPUSH', K.mail(item[3]), 'look') end
      call('PEXPIRE', K.mail(item[3]), 3600000)
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
  move(f.queue, 'started', 'queued', #items)
  offer(f)
end

-- Whether an index lies in a range that was canceled at once.
local function in_cut(cuts, index)
  for lo, hi in string.gmatch(cuts or '', '(%d+)%-(%d+)') do
    if index >= tonumber(lo) and index < tonumber(hi) then return true end
  end
  return false
end

-- Cancels (letter c) what waits: the cursor's range at once, the jobs handed back one by one, at most 1,000.
-- Answers how many, and whether there are more.
local function cut_waiting(f, cause)
  local items, done = {}, 0
  local again, void, skip, redo = part(f.batch, 'again'), part(f.batch, 'void'), part(f.batch, 'skip'), part(f.batch, 'redo')
  for _, entry in ipairs(call('LPOP', again, 1000) or {}) do
    local index, attempt = string.match(entry, '^(%d+) (%d+)')
    if call('SREM', void, index) == 0 then items[#items + 1] = {index, tonumber(attempt)} end
  end
  if #items == 0 and f.cur < f.n then
    for _, index in ipairs(call('SPOP', redo, 1000)) do
      if tonumber(index) >= f.cur then
        items[#items + 1] = {index, 0}
        call('SADD', skip, index)
      end
    end
    if #items == 0 and call('EXISTS', redo) == 0 then
      done = f.n - f.cur - call('SCARD', skip)
      call('UNLINK', skip)
      local cuts = (f.cuts or '') .. f.cur .. '-' .. f.n .. '-' .. cause .. ' '
      call('HSET', K.b(f.batch), 'cur', f.n, 'cuts', cuts)
      count(f, 'ncan', done)
      tell(f, {'c' .. f.cur .. '-' .. f.n})
      f.cur = f.n
    end
  end
  conclude(f, 'c', cause, items)
  done = done + #items
  move(f.queue, 'queued', 'canceled', done)
  return done, call('EXISTS', again) == 1 or f.cur < f.n
end
