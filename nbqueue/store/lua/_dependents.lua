-- What depends on what. For scripts that say so (WITH), which end with drain().
--
-- A need is written "<selector>:<allow>:<batch>": the selector is * (the whole batch), or an index; allow is 1 if a
-- failure is allowed. The child's `waits` says of each of its needs how it stands: o open, m met, x failed; the fields
-- nopen and nbad of the child count the first and the last. The parent's `then` has the same words with the child in
-- the place of the batch. It stays while both are there, so a retry of the parent is felt too.
-- The selector = is that of a child with a source: its job i waits for job i.
-- All of it looks at how things stand, never at what changed: done twice it is as done once.

local visited, touched = 0, 0 -- children and their jobs; what is too much for one script promote goes on with

local function nudge()
  local worker = call('ZRANGEBYSCORE', K.workers, int(math.floor(now / 1000)), '+inf', 'LIMIT', 0, 1)[1]
  if not worker or call('LLEN', K.mail(worker)) >= 8 then return end
  call('RPUSH', K.mail(worker), 'look')
  call('PEXPIRE', K.mail(worker), 3600000)
end

-- Leaves the rest to promote.
local function postpone(what, batch)
  call('ZADD', K.later, int(now), what .. ':' .. batch)
  nudge()
end

-- How a job ended: F, X, C, or nil. Large records are not read.
local function letter_of(f, index)
  local out = part(f.batch, 'out')
  local size = call('HSTRLEN', out, index)
  if size == 0 then
    local whole = in_cut(f.cuts, tonumber(index)) and call('HEXISTS', part(f.batch, 'past'), index) == 0
    return whole and 'C' or nil
  end
  if size <= 65536 then return string.upper(string.sub(call('HGET', out, index), 1, 1)) end
  return call('SISMEMBER', part(f.batch, 'bad'), index) == 1 and 'X' or 'F'
end

local function standing(f, selector, allow)
  if selector == '*' then
    if not f.done then return 'o' end
    return (allow == '1' or f.nfail + f.ncan == 0) and 'm' or 'x'
  end
  local letter = letter_of(f, selector)
  if not letter then return 'o' end
  return (allow == '1' or letter == 'F') and 'm' or 'x'
end

-- ---------------------------------------------------------------- back from an outcome

local function withdraw(f, index, blob)
  local past = part(f.batch, 'past')
  call('HSET', past, index, (call('HGET', past, index) or '') .. struct.pack('>I4', #blob) .. blob)
  if blob ~= '' then call('HDEL', part(f.batch, 'out'), index) end
  call('HDEL', part(f.batch, 'tail'), index)
end

-- The attempts of a job whose outcome was withdrawn.
local function attempts_of(f, index)
  local past, at, attempt = call('HGET', part(f.batch, 'past'), index) or '', 1, 0
  while at + 6 < #past do
    local size = struct.unpack('>I4', string.sub(past, at, at + 3))
    if size > 0 then attempt = math.max(attempt, struct.unpack('>I2', string.sub(past, at + 5, at + 6))) end
    at = at + 4 + size
  end
  return attempt
end

-- A job waits again in the queue, or wherever its batch is held.
local function put_back(f, index, attempt, front)
  if call('SREM', part(f.batch, 'skip'), index) == 1 then
    call('SADD', part(f.batch, 'redo'), index)
  elseif call('SREM', part(f.batch, 'void'), index) == 0 then
    call(front and 'LPUSH' or 'RPUSH', part(f.batch, 'again'), index .. ' ' .. attempt .. ' 0 0')
  end
end

-- The record of a job that was canceled because of what it depended on, or nil.
local function fallen(f, index)
  local out = part(f.batch, 'out')
  local size = call('HSTRLEN', out, index)
  if size == 0 or size > 1000 then return nil end
  local blob = call('HGET', out, index)
  if string.sub(blob, 1, 1) ~= 'c' or cmsgpack.unpack(string.sub(blob, 4))[1] ~= 'dependency' then return nil end
  return blob
end

-- ---------------------------------------------------------------- whole batches

-- Moves what waits in a batch from one hold to another, or to none.
local function hold(f, letter)
  local from = base(f)
  f.hold = letter
  move(f.queue, from, base(f), waiting(f.batch, f.n, f.cur))
  if letter then call('HSET', K.b(f.batch), 'hold', letter) else call('HDEL', K.b(f.batch), 'hold') end
  if letter == 'S' then
    call('ZADD', K.later, int(f.due), 'run:' .. f.batch)
    ring(f.queue) -- an idle worker learns when
  else
    call('ZREM', K.later, 'run:' .. f.batch)
  end
  if letter then call('ZREM', K.later, 'ttl:' .. f.batch) end
end

-- Nothing holds it but perhaps its time.
local function release(f)
  hold(f, f.due and f.due > now and 'S' or nil)
  if not f.hold then
    call('HSET', K.b(f.batch), 'queued', int(now))
    if waiting(f.batch, f.n, f.cur) > 0 then
      arm_ttl(f)
      offer(f)
    end
  end
  hint(f)
end

-- A batch that runs again after its end waits as at its beginning. If what it depends on has failed it runs at once: in
-- spite of that, since somebody wishes so.
local function rehold(f)
  if f.nbad > 0 then return end
  if f.nopen > 0 then hold(f, 'D') elseif f.due and f.due > now then hold(f, 'S') end
end

-- Something that it needs has failed: it is canceled, in parts if it is large.
local function fall(f)
  call('HSET', K.b(f.batch), 'fell', '1')
  local done, more
  repeat
    done, more = cut_waiting(f, 'dependency')
    touched = touched + math.min(MOST.rows, 100 + done)
  until not more or touched > MOST.touched
  if more then
    postpone('fall', f.batch)
    return false
  end
  hold(f, nil)
  finish(f.batch)
  return true
end

-- The range that fell is withdrawn: the cursor goes back to its start, but for jobs that have moved on since.
local function raise_range(f)
  local kept, told, lo = {}, {}, f.cur -- the last ranges go, as long as they fell
  for from, upto, why in string.gmatch(f.cuts or '', '(%d+)-(%d+)-(%a+)') do
    kept[#kept + 1] = {from, upto, why}
  end
  while #kept > 0 and kept[#kept][3] == 'dependency' and tonumber(kept[#kept][2]) == lo do
    local range = table.remove(kept)
    lo = tonumber(range[1])
    told[#told + 1] = 'r' .. range[1] .. '-' .. range[2]
  end
  if #told == 0 then return end
  for _, name in ipairs({'out', 'past'}) do
    for _, index in ipairs(call('HKEYS', part(f.batch, name))) do
      local number = tonumber(index)
      if number >= lo and number < f.cur then call('SADD', part(f.batch, 'skip'), index) end
    end
  end
  local number, text = f.cur - lo - call('SCARD', part(f.batch, 'skip')), ''
  for _, range in ipairs(kept) do text = text .. table.concat(range, '-') .. ' ' end
  call('HSET', K.b(f.batch), 'cur', lo, 'cuts', text)
  f.cur, f.cuts = lo, text
  count(f, 'ncan', -number)
  move(f.queue, 'canceled', base(f), number)
  tell(f, told)
  happened(f, 'range', lo)
end

-- Jobs that fell one by one. One whose source has failed stays canceled.
local function raise_jobs(f)
  local source, number, told, items = f.src and facts(f.src), 0, {}, {}
  for _, index in ipairs(call('SPOP', part(f.batch, 'fell'), MOST.rows)) do
    local blob, letter = fallen(f, index), nil
    if f.src then letter = source and letter_of(source, index) end
    if blob and (not f.src or source and letter ~= 'X' and letter ~= 'C') then
      withdraw(f, index, blob)
      if f.src and not letter then
        call('SETBIT', part(f.batch, 'ready'), index, 0)
        count(f, 'ndef', 1)
        move(f.queue, 'canceled', 'deferred', 1)
      else
        put_back(f, index, attempts_of(f, index))
        move(f.queue, 'canceled', base(f), 1)
      end
      number = number + 1
      told[number], items[number] = 'r' .. index, {index, 'r'}
    end
  end
  count(f, 'ncan', -number)
  tell(f, told)
  happened(f, 'jobs', items)
end

-- What failed before it has not failed any more: what was canceled for that waits again.
local function rise(f)
  reopen(f)
  if not f.hold then hold(f, 'D') end
  raise_range(f)
  raise_jobs(f)
  if call('EXISTS', part(f.batch, 'fell')) == 1 then
    postpone('rise', f.batch)
    return false
  end
  call('HDEL', K.b(f.batch), 'fell')
  if f.nopen == 0 then release(f) end
  finish(f.batch) -- if nothing came back
  return true
end

local function decide(child)
  local f = facts(child)
  if not f then return true end
  if f.fell and f.nbad == 0 then return rise(f) end
  if not f.hold then return true end
  if f.nbad > 0 then return fall(f) end
  if f.nopen > 0 and f.hold == 'S' then hold(f, 'D') end
  if f.nopen == 0 and f.hold == 'D' then release(f) end
  return true
end

-- Looks how a need of a child stands.
local function look(f, member)
  local which, child = string.match(member, '^([^:]+:[^:]+:)(.*)$')
  local selector, allow = string.match(which, '^([^:]+):([^:]+)')
  local need = which .. f.batch
  local was = call('HGET', part(child, 'waits'), need)
  if not was then
    call('ZREM', part(f.batch, 'then'), member)
    return
  end
  local is = standing(f, selector, allow)
  if is == was then return end
  call('HSET', part(child, 'waits'), need, is)
  local counter = {o = 'nopen', x = 'nbad'}
  if counter[was] then call('HINCRBY', K.b(child), counter[was], -1) end
  if counter[is] then call('HINCRBY', K.b(child), counter[is], 1) end
  decide(child)
end

local function visit(f, from, upto)
  local members = call('ZRANGEBYLEX', part(f.batch, 'then'), from, upto, 'LIMIT', 0, MOST.children + 1)
  if #members > 0 and visited + #members > MOST.children then
    call('HDEL', K.b(f.batch), 'fcur')
    postpone('free', f.batch)
    return
  end
  visited = visited + #members
  for _, member in ipairs(members) do look(f, member) end
end
