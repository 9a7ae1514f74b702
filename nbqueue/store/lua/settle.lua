-- settle: the outcomes of jobs of one batch. Fenced: only while `run` holds the token of the claim, and the token is
-- this worker's. An outcome may come with "<times> <front> <seconds,seconds...>": while the job has runs left it goes to
-- `past`, and the job runs again, at once or later.
-- Answers OK, AGAIN, DUP (this very outcome stands already) or STALE, in order.
-- LATER: cutting dependents pairs -> drain
-- ARGV: worker batch entries...
make_room()
local out, runs = part(batch, 'out'), part(batch, 'run')
local b = call('HMGET', K.b(batch), 'queue', 'session', 'single', 'deps', 'nrun', 'nfin', 'nfail', 'ncan')
for i = 5, b[1] and 8 or 0 do count_of(b[i] or 0) end
local f = {batch = batch, queue = b[1], session = b[2], single = b[3], deps = b[4]}
local indexes, reruns = {}, false
for i = entries, #ARGV, 6 do
  indexes[#indexes + 1] = ARGV[i]
  reruns = reruns or ARGV[i + 5] ~= ''
end
sound(batch, 'out tail bad')
if f.single ~= '1' then sound(batch, 'log') end
if reruns then sound(batch, 'past used again park') end
if b[1] then call('HLEN', K.tally(b[1])) end
local leases = call('HMGET', runs, unpack(indexes))
local own = worker .. ':'
local answers, writes, tails, bad, done, names, seen = {}, {}, {}, {}, {}, {}, {}
local ended, told, again = {}, {}, {}
local counts = {F = 0, X = 0, C = 0}
-- Whether a job has a run left; the one that it uses is counted. A repeat gives it all its retries again.
local function runs_left(index, state, rerun)
  local times, front, waits = string.match(rerun, '^(%d+) (%d) (.*)$')
  local used = part(batch, 'used')
  local field = state == 'F' and 'r' .. index or index
  local number = tonumber(call('HGET', used, field) or '0') + 1
  if number > tonumber(times) then return nil end
  call('HSET', used, field, number)
  if state == 'F' then call('HDEL', used, index) end
  local seconds, place = 0, 0
  for each in string.gmatch(waits, '[^,]+') do
    place = place + 1
    if place <= number then seconds = tonumber(each) end
  end
  return {index = index, front = front == '1', us = math.floor(seconds * 1000000)}
end

-- Puts a record behind those of earlier runs, of which the last ten are kept.
local function remember(index, blob)
  local past, records, at = call('HGET', part(batch, 'past'), index) or '', {}, 1
  while at <= #past do
    local size = struct.unpack('>I4', string.sub(past, at, at + 3))
    records[#records + 1] = string.sub(past, at, at + 3 + size)
    at = at + 4 + size
  end
  records[#records + 1] = struct.pack('>I4', #blob) .. blob
  while #records > 10 do table.remove(records, 1) end
  call('HSET', part(batch, 'past'), index, table.concat(records))
end

-- The run is over, but not the job.
local function run_again(list)
  local whole, parked, queued = facts(batch), 0, 0
  for _, one in ipairs(list) do
    remember(one.index, one.blob)
    local entry = one.attempt .. ' 0 0'
    if one.us > 0 then
      call('HSET', part(batch, 'park'), one.index, entry)
      call('ZADD', K.later, int(now + one.us), 'run:' .. batch .. ':' .. one.index)
      parked = parked + 1
    else
      call(one.front and 'LPUSH' or 'RPUSH', part(batch, 'again'), one.index .. ' ' .. entry)
      if one.front and whole.single == '1' then whole.front = '1' end
      queued = queued + 1
    end
  end
  count(whole, 'npark', parked)
  move(whole.queue, 'started', 'scheduled', parked)
  move(whole.queue, 'started', base(whole), queued)
  if parked > 0 then ring(whole.queue) end -- an idle worker learns when
  if queued > 0 then
    if not whole.hold then arm_ttl(whole) end
    offer(whole)
  end
  hint(whole)
end

for i, index in ipairs(indexes) do
  local at = entries + (i - 1) * 6
  local token, state, blob, tail = ARGV[at + 1] .. ' ', ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local run = not seen[index] and leases[i]
  if b[1] and run and string.sub(run, 1, #token) == token and string.sub(token, 1, #own) == own then
    local attempt = tonumber(string.match(run, '^(%d+)', #token + 1))
    local rerun = ARGV[at + 5]
    local left = rerun ~= '' and runs_left(index, state, rerun)
    seen[index] = true
    ended[#ended + 1] = index
    names[#names + 1] = batch .. ':' .. index
    if left then
      answers[i] = 'AGAIN'
      left.attempt, left.blob = attempt, head(state, attempt) .. blob
      again[#again + 1] = left
    else
      answers[i] = 'OK'
      counts[state] = counts[state] + 1
      done[#done + 1] = index
      writes[#writes + 1] = index
      writes[#writes + 1] = head(state, attempt) .. blob
      if b[4] then told[#told + 1] = {index, state} end
      if state == 'X' then bad[#bad + 1] = index end
    end
    if tail ~= '' then
      tails[#tails + 1] = index
      tails[#tails + 1] = tail
    end
  else
    answers[i] = false
  end
end
-- First to where they are now, and only then from where they were.
if #tails > 0 then call('HSET', part(batch, 'tail'), unpack(tails)) end
if #again > 0 then run_again(again) end
if #done > 0 then
  call('HSET', out, unpack(writes))
  if #bad > 0 then call('SADD', part(batch, 'bad'), unpack(bad)) end
end
if #ended > 0 then
  call('SREM', K.held(worker), unpack(names))
  call('HDEL', runs, unpack(ended))
  count(f, 'nrun', -#names)
end
if #done > 0 then
  for letter, by in pairs(counts) do
    if by > 0 then
      count(f, FIELD[letter], by)
      move(f.queue, 'started', WORD[letter], by)
    end
  end
  tell(f, done)
  happened(f, 'jobs', told)
  finish(batch)
end
for i, index in ipairs(indexes) do
  if not answers[i] then
    local stands = call('HGET', out, index)
    local at = entries + (i - 1) * 6
    local same = stands and string.sub(stands, 4) == ARGV[at + 3]
    answers[i] = same and 'DUP' or 'STALE'
    if not same and ARGV[at + 5] ~= '' then
      local past = call('HGET', part(batch, 'past'), index)
      if past and string.sub(past, -#ARGV[at + 3]) == ARGV[at + 3] then answers[i] = 'AGAIN' end
    end
    if same then finish(batch) end -- an earlier try may have broken off before that
  end
end
if #pending > 0 then later().drain() end
return answers
