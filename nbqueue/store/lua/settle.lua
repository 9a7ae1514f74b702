-- settle: the outcomes of jobs of one batch. Fenced: only while `run` holds the token of the claim, and the token is
-- this worker's. Answers OK, DUP (this very outcome stands already) or STALE, in order.
-- ARGV: worker batch entries...
make_room()
local out, runs = part(batch, 'out'), part(batch, 'run')
local b = call('HMGET', K.b(batch), 'queue', 'session', 'single')
local f = {batch = batch, queue = b[1], session = b[2], single = b[3]}
local indexes = {}
for i = entries, #ARGV, 5 do indexes[#indexes + 1] = ARGV[i] end
local leases = call('HMGET', runs, unpack(indexes))
local own = worker .. ':'
local answers, writes, tails, bad, done, names, seen = {}, {}, {}, {}, {}, {}, {}
local counts = {F = 0, X = 0, C = 0}
for i, index in ipairs(indexes) do
  local at = entries + (i - 1) * 5
  local token, state, blob, tail = ARGV[at + 1] .. ' ', ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local run = not seen[index] and leases[i]
  if b[1] and run and string.sub(run, 1, #token) == token and string.sub(token, 1, #own) == own then
    local attempt = tonumber(string.match(run, '^(%d+)', #token + 1))
    seen[index] = true
    answers[i] = 'OK'
    counts[state] = counts[state] + 1
    done[#done + 1] = index
    names[#names + 1] = batch .. ':' .. index
    writes[#writes + 1] = index
    writes[#writes + 1] = head(state, attempt) .. blob
    if tail ~= '' then
      tails[#tails + 1] = index
      tails[#tails + 1] = tail
    end
    if state == 'X' then bad[#bad + 1] = index end
  else
    answers[i] = false
  end
end
if #done > 0 then
  call('HSET', out, unpack(writes))
  call('HDEL', runs, unpack(done))
  count(f, 'nrun', -#done)
  call('SREM', K.held(worker), unpack(names))
  if #tails > 0 then call('HSET', part(batch, 'tail'), unpack(tails)) end
  if #bad > 0 then call('SADD', part(batch, 'bad'), unpack(bad)) end
  for letter, by in pairs(counts) do
    if by > 0 then
      count(f, FIELD[letter], by)
      move(f.queue, 'started', WORD[letter], by)
    end
  end
  tell(f, done)
  finish(batch)
end
for i, index in ipairs(indexes) do
  if not answers[i] then
    local stands = call('HGET', out, index)
    local same = stands and string.sub(stands, 4) == ARGV[entries + (i - 1) * 5 + 3]
    answers[i] = same and 'DUP' or 'STALE'
    if same then finish(batch) end -- an earlier try may have broken off before that
  end
end
return answers
