-- Job i of a batch and job i of its source, and drain(), which tells children what happened to their parents.

-- What a job's own state is while it has neither outcome nor lease nor a time to run again: it stands in `again`.
local function in_again(f, index)
  return call('HEXISTS', part(f.batch, 'out'), index) == 0 and call('HEXISTS', part(f.batch, 'run'), index) == 0
    and call('HEXISTS', part(f.batch, 'park'), index) == 0
end

local function unready(f, index)
  call('SETBIT', part(f.batch, 'ready'), index, 0)
  count(f, 'ndef', 1)
  f.ndef = f.ndef + 1
end

-- The source is to run again: its child's job waits for it, unless it runs or has run.
local function defer(f, index)
  if call('GETBIT', part(f.batch, 'ready'), index) == 0 then return end
  local blob = fallen(f, index)
  if blob then
    reopen(f)
    withdraw(f, index, blob)
    unready(f, index)
    count(f, 'ncan', -1)
    move(f.queue, 'canceled', 'deferred', 1)
    tell(f, {'r' .. index})
    happened(f, 'jobs', {{index, 'r'}})
  elseif in_again(f, index) then
    call('SADD', part(f.batch, 'void'), index)
    unready(f, index)
    move(f.queue, base(f), 'deferred', 1)
  end
end

-- Compares jobs of a child with those of its source: list = {index, F X C or r}.
local function reconcile(f, list)
  local ready, news, falls = part(f.batch, 'ready'), 0, {}
  local history = call('EXISTS', part(f.batch, 'past')) == 1
  for _, item in ipairs(list) do
    local index, letter = item[1], item[2]
    if tonumber(index) >= f.n then
      -- it has not grown yet: then it will be compared
    elseif letter == 'r' then
      defer(f, index)
    else
      local fresh = call('GETBIT', ready, index) == 0
      if letter == 'F' and not fresh and fallen(f, index) then
        defer(f, index)
        fresh, history = true, true
      end
      if letter ~= 'F' and not fresh and in_again(f, index) then
        defer(f, index)
        fresh = true
      end
      if fresh then
        call('SETBIT', ready, index, 1)
        if letter == 'F' then
          put_back(f, index, history and attempts_of(f, index) or 0)
          news = news + 1
        else
          falls[#falls + 1] = {index, history and attempts_of(f, index) or 0}
        end
      end
    end
  end
  count(f, 'ndef', -news - #falls)
  f.ndef = f.ndef - news - #falls
  move(f.queue, 'deferred', base(f), news)
  move(f.queue, 'deferred', 'canceled', #falls)
  conclude(f, 'c', 'dependency', falls)
  if news > 0 and not f.hold then
    call('HSETNX', K.b(f.batch), 'queued', int(now))
    arm_ttl(f)
    offer(f)
    hint(f)
  end
  finish(f.batch)
end

-- Some jobs from where the comparison stands. Answers whether that was all.
local function scan(child)
  local f = facts(child)
  local source = f and f.src and facts(f.src)
  local from = tonumber(call('HGET', K.b(child), 'scan') or '')
  if not source or not from then
    call('HDEL', K.b(child), 'scan')
    return true
  end
  local upto, list = math.min(f.n, from + MOST.rows), {}
  for index = from, upto - 1 do list[#list + 1] = {tostring(index), letter_of(source, index) or 'r'} end
  if upto < f.n then call('HSET', K.b(child), 'scan', upto) else call('HDEL', K.b(child), 'scan') end
  reconcile(f, list)
  return upto >= f.n
end

-- From job `lo` on, the jobs of a child are compared with those of its source.
local function rescan(child, lo)
  local from = call('HGET', K.b(child), 'scan')
  call('HSET', K.b(child), 'scan', from and math.min(tonumber(from), lo) or lo)
  touched = touched + MOST.rows
  if touched > MOST.touched or not scan(child) then postpone('scan', child) end
end

-- A child has as many jobs as its source, and is open as long.
local function follow(child, source)
  local f = facts(child)
  if not f or f.src ~= source.batch or f.canceled == '1' then return end
  if f.open == source.open and f.n == source.n and f.cut == source.cut then return end
  local more = source.n - f.n
  if more > 0 or source.open == '1' then reopen(f) end
  call('HSET', K.b(child), 'n', source.n, 'cur', source.n, 'open', source.open)
  if source.cut then call('HSET', K.b(child), 'cut', source.cut) else call('HDEL', K.b(child), 'cut') end
  count(f, 'ndef', more)
  move(f.queue, nil, 'deferred', more)
  happened(f, 'grow')
  hint(f)
  if f.fell then fall(facts(child)) end
  finish(child)
end

local function tell_pairs(f, what, detail)
  for _, member in ipairs(call('ZRANGEBYLEX', part(f.batch, 'then'), '[=', '(>')) do
    local child = string.sub(member, 5)
    local c = facts(child)
    if not c or c.src ~= f.batch then
      call('ZREM', part(f.batch, 'then'), member)
    elseif what == 'grow' then
      follow(child, f)
    elseif what == 'range' then
      rescan(child, detail)
    elseif touched + #detail > MOST.touched then
      rescan(child, 0)
    else
      touched = touched + #detail
      reconcile(c, detail)
    end
  end
end

-- Acts on what happened, and on what that makes happen, until nothing is left or it was much.
local function drain()
  local done = 0
  while pending[done + 1] do
    done = done + 1
    local batch, what, detail = unpack(pending[done])
    local f = facts(batch)
    if f and f.deps then
      local some, whole = string.find(f.deps, 'i', 1, true), string.find(f.deps, '*', 1, true)
      if what == 'all' and whole then visit(f, '[*', '(+') end
      if what == 'jobs' and some then
        for _, item in ipairs(detail) do visit(f, '[' .. item[1] .. ':', '(' .. item[1] .. ';') end
      end
      if what == 'range' and some then visit(f, '[0', '(:') end
      if what ~= 'all' and string.find(f.deps, '=', 1, true) then tell_pairs(f, what, detail) end
    end
  end
end
