-- restore: jobs of a batch that the server had forgotten come back, from a start index on: arguments and outcomes as
-- they lay here, in an upload that was submitted without any. A job without an outcome is queued; what is empty is not
-- there. The last part closes the batch. `rest` are pairs of arguments and outcome.
-- Answers OK, CANCELED, NONE (no such batch), INUSE (it is another upload, or closed), GAP (start is beyond the end).
-- WITH: cutting dependents pairs
-- ARGV: batch start# nonce last created big# marks rest...
local f = facts(batch)
if not f then return 'NONE' end
if f.src or f.nonce ~= nonce then return 'INUSE' end
if f.canceled == '1' then return 'CANCELED' end
local upto = start + (#ARGV - rest + 1) / 2
local closed = f.open == '0' and f.cut ~= '1'
if closed then return upto <= f.n and 'OK' or 'INUSE' end
if start > f.n then return 'GAP' end

call('HSET', K.b(batch), 'created', created, 'open', last == '1' and 0 or 1)
call('HDEL', K.b(batch), 'cut')
reopen(f)
if last == '1' then
  call('ZREM', K.later, 'upload:' .. batch)
else
  call('ZADD', K.later, int(now + 30000000), 'upload:' .. batch)
end
if upto > f.n then
  local args, outs, told, bad, queued, items = {}, {}, {}, {}, {}, {}
  local counts = {nfin = 0, nfail = 0, ncan = 0}
  for index = f.n, upto - 1 do
    local at = rest + 2 * (index - start)
    local given, blob = ARGV[at], ARGV[at + 1]
    if given ~= '' then
      args[#args + 1] = index
      args[#args + 1] = given
    end
    if blob == '' then
      queued[#queued + 1] = index .. ' 0 0 0'
    else
      local letter = string.sub(blob, 1, 1)
      local field = FIELD[letter]
      counts[field] = counts[field] + 1
      outs[#outs + 1] = index
      outs[#outs + 1] = blob
      told[#told + 1] = tostring(index)
      if field == 'nfail' then bad[#bad + 1] = tostring(index) end
      items[#items + 1] = {tostring(index), string.upper(letter)}
    end
  end
  if #args > 0 then call('HSET', part(batch, 'args'), unpack(args)) end
  if #outs > 0 then call('HSET', part(batch, 'out'), unpack(outs)) end
  if #bad > 0 then call('SADD', part(batch, 'bad'), unpack(bad)) end
  if marks ~= '' then call('SETRANGE', part(batch, 'marks'), 16 * start, marks) end
  -- None of them is beyond the cursor: what is to run stands in `again`.
  call('HSET', K.b(batch), 'n', upto, 'cur', upto, 'big', math.max(big, f.big))
  f.n, f.cur = upto, upto
  for letter, word in pairs({F = 'finished', X = 'failed', C = 'canceled'}) do
    count(f, FIELD[letter], counts[FIELD[letter]])
    move(f.queue, nil, word, counts[FIELD[letter]])
  end
  tell(f, told)
  if #queued > 0 then
    call('RPUSH', part(batch, 'again'), unpack(queued))
    call('HSET', K.b(batch), 'queued', int(now))
    move(f.queue, nil, base(f), #queued)
    arm_ttl(f)
    offer(f)
  end
  happened(f, 'grow')
  happened(f, 'jobs', items)
end
finish(batch)
drain()
return 'OK'
