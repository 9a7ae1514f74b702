-- retry: withdraws outcomes, which opens a new run of their jobs. Names the attempts that the caller saw, and a nonce:
-- the same one again answers as before. Another function or queue is for a batch that is done. Answers how many, -1 (no
-- such batch), or -2 (it runs, and stays as and where it is). With `front` they come before the other jobs of the batch,
-- and a job of its own before all of its queue.
-- WITH: cutting dependents pairs
-- ARGV: batch nonce fn key spec signer python host queue front rows...
make_room()
local f = facts(batch)
if not f then return -1 end
local before = call('HGET', K.b(batch), 'rn') or ''
local answered = string.match(before, ' ' .. string.gsub(nonce, '%p', '%%%0') .. '=(%d+) ')
if answered then return tonumber(answered) end
if not f.done and (fn ~= '' or (queue ~= '' and queue ~= f.queue)) then return -2 end

local out, past = part(batch, 'out'), part(batch, 'past')
sound(batch, 'out past tail bad fell used again void skip redo log ready')
call('HLEN', K.tally(f.queue))
local from, told, items, number, deferred = {F = 0, X = 0, C = 0}, {}, {}, 0, 0
local source = f.src and facts(f.src)

-- With a source it waits for the job of that, unless this has finished; if it failed, there is nothing to run with.
local function again(index, letter, attempt, blob)
  if f.src then
    local ended = source and letter_of(source, index)
    if not source or ended == 'X' or ended == 'C' then return end
    if not ended then
      call('SETBIT', part(batch, 'ready'), index, 0)
      deferred = deferred + 1
    end
  end
  withdraw(f, index, blob)
  if letter == 'X' then call('SREM', part(batch, 'bad'), index) end
  call('SREM', part(batch, 'fell'), index)
  call('HDEL', part(batch, 'used'), index, 'r' .. index)
  from[letter] = from[letter] + 1
  number = number + 1
  told[number], items[number] = 'r' .. index, {index, 'r'}
  if not f.src or call('GETBIT', part(batch, 'ready'), index) == 1 then put_back(f, index, attempt, front == '1') end
end

for i = rows, #ARGV, 2 do
  local index, seen = ARGV[i], tonumber(ARGV[i + 1])
  local blob = call('HGET', out, index)
  if blob then
    local attempt = struct.unpack('>I2', string.sub(blob, 2, 3))
    if attempt == seen then again(index, string.upper(string.sub(blob, 1, 1)), attempt, blob) end
  elseif seen == 0 and in_cut(f.cuts, tonumber(index)) and call('HEXISTS', past, index) == 0 then
    again(index, 'C', 0, '')
  end
end

local function leave_line()
  for _, list in ipairs({K.q(f.queue), K.front(f.queue)}) do call('LREM', list, 0, batch) end
  call('HDEL', K.b(batch), 'inq')
  f.inq = nil
end

-- All that is done of it is counted in the other queue from now on.
local function change_queue()
  for field, word in pairs({nfin = 'finished', nfail = 'failed', ncan = 'canceled'}) do
    move(f.queue, word, nil, f[field])
    move(queue, nil, word, f[field])
  end
  leave_line()
  for _, set in ipairs({K.ended(f.queue), K.failed(f.queue)}) do call('ZREM', set, batch) end
  call('HSET', K.b(batch), 'queue', queue)
  know(queue)
  f.queue = queue
end

-- Named no rows, the change is all that is asked for: new arguments follow.
if number > 0 or #ARGV < rows then
  if fn ~= '' then call('SET', part(batch, 'fn'), fn, 'KEEPTTL') end
  for name, value in pairs({key = key, spec = spec, signer = signer, python = python, host = host}) do
    if value ~= '' then call('HSET', K.b(batch), name, value) end
  end
end
if number > 0 then
  if queue ~= '' and queue ~= f.queue then change_queue() end
  local was_done = f.done
  for letter, by in pairs(from) do
    count(f, FIELD[letter], -by)
    move(f.queue, WORD[letter], base(f), by)
  end
  count(f, 'ndef', deferred)
  move(f.queue, base(f), 'deferred', deferred)
  tell(f, told)
  reopen(f)
  happened(f, 'jobs', items)
  if was_done then rehold(f) end
  if not f.hold and number > deferred then
    call('HSET', K.b(batch), 'queued', int(now))
    arm_ttl(f)
    if front == '1' and f.single == '1' then
      leave_line() -- it may stand there from before it was canceled
      f.front = '1'
    end
    offer(f)
  end
end
-- The last eight answers are kept.
local kept = {}
for word in string.gmatch(before, '%S+') do kept[#kept + 1] = word end
kept[#kept + 1] = nonce .. '=' .. number
while #kept > 8 do table.remove(kept, 1) end
call('HSET', K.b(batch), 'rn', ' ' .. table.concat(kept, '  ') .. ' ')
drain()
return number
