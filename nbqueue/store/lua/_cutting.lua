-- Cancels what waits. For scripts that say so: WITH.

-- Whether an index lies in a range that was canceled at once.
local function in_cut(cuts, index)
  for lo, hi in string.gmatch(cuts or '', '(%d+)%-(%d+)') do
    if index >= tonumber(lo) and index < tonumber(hi) then return true end
  end
  return false
end

-- Cancels jobs that wait for their source.
local function cut_deferred(f, items)
  local ready, from = part(f.batch, 'ready'), tonumber(call('HGET', K.b(f.batch), 'csr') or '0')
  local index, upto = from, math.min(f.n, from + MOST.rows)
  while index < upto and #items < f.ndef do
    if call('SETBIT', ready, index, 1) == 0 then items[#items + 1] = {index, 0} end
    index = index + 1
  end
  f.ndef = index >= f.n and 0 or f.ndef - #items
  if f.ndef == 0 then call('HDEL', K.b(f.batch), 'csr') else call('HSET', K.b(f.batch), 'csr', index) end
  count(f, 'ndef', -#items)
end

-- Cancels jobs that would run again later.
local function cut_parked(f, items)
  local found = call('HSCAN', part(f.batch, 'park'), 0, 'COUNT', MOST.rows)[2]
  for i = 1, math.min(#found, 2 * MOST.rows), 2 do
    items[#items + 1] = {found[i], tonumber(string.match(found[i + 1], '^%d+'))}
    call('HDEL', part(f.batch, 'park'), found[i])
    call('ZREM', K.later, 'run:' .. f.batch .. ':' .. found[i])
  end
  f.npark = #items == 0 and 0 or f.npark - #items
  count(f, 'npark', -#items)
end

-- Cancels the jobs beyond the cursor at once, with one entry of the log. Answers how many.
local function cut_range(f, cause)
  local skip = part(f.batch, 'skip')
  local done = f.n - f.cur - call('SCARD', skip)
  call('UNLINK', skip)
  f.cuts = (f.cuts or '') .. f.cur .. '-' .. f.n .. '-' .. cause .. ' '
  call('HSET', K.b(f.batch), 'cur', f.n, 'cuts', f.cuts)
  count(f, 'ncan', done)
  tell(f, {'c' .. f.cur .. '-' .. f.n})
  happened(f, 'range', f.cur)
  f.cur = f.n
  return done
end

-- Cancels (letter c) what waits: the cursor's range at once, other jobs one by one. What only expired waited in the queue. Answers how many, and whether there are more.
local function cut_waiting(f, cause)
  local items, done, word = {}, 0, base(f)
  local batch = f.batch
  local again, void, skip, redo = part(batch, 'again'), part(batch, 'void'), part(batch, 'skip'), part(batch, 'redo')
  sound(batch, 'again void skip redo park ready out bad log fell')
  call('HLEN', K.tally(f.queue))
  for _, entry in ipairs(call('LPOP', again, MOST.rows) or {}) do
    local index, attempt = string.match(entry, '^(%d+) (%d+)')
    if call('SREM', void, index) == 0 then items[#items + 1] = {index, tonumber(attempt)} end
  end
  if #items == 0 and f.cur < f.n then
    for _, index in ipairs(call('SPOP', redo, MOST.rows)) do
      if tonumber(index) >= f.cur then
        items[#items + 1] = {index, 0}
        call('SADD', skip, index)
      end
    end
    if #items == 0 and call('EXISTS', redo) == 0 then done = cut_range(f, cause) end
  end
  local all = cause ~= 'expired'
  if #items + done == 0 and all and f.npark > 0 then
    word = 'scheduled'
    cut_parked(f, items)
  elseif #items + done == 0 and all and f.ndef > 0 then
    word = 'deferred'
    cut_deferred(f, items)
  end
  if cause == 'dependency' then
    for _, item in ipairs(items) do call('SADD', part(f.batch, 'fell'), item[1]) end
  end
  conclude(f, 'c', cause, items)
  done = done + #items
  move(f.queue, word, 'canceled', done)
  local more = call('EXISTS', again) == 1 or f.cur < f.n
  return done, more or all and f.npark + f.ndef > 0
end
