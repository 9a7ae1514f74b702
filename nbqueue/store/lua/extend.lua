-- extend: more arguments, from a start index on; without any it renews the upload's lease (30 s).
-- The same nonce again is the same upload. Another one may take over a closed batch, at its end.
-- Answers OK, CANCELED, NONE (no such batch), INUSE (another upload writes it), GAP (start is beyond the end).
-- WITH: cutting dependents pairs
-- ARGV: batch start# nonce last big# marks args...
local f = facts(batch)
if not f then return 'NONE' end
if f.src then return 'INUSE' end -- it follows its source
if f.nonce == nonce then
  if f.canceled == '1' then return 'CANCELED' end
  if start > f.n then return 'GAP' end
else
  if f.open == '1' then return 'INUSE' end
  if start ~= f.n then return start > f.n and 'GAP' or 'INUSE' end
end
local upto = start + #ARGV - args + 1
local closed = f.open == '0' and f.cut ~= '1'
if f.nonce == nonce and closed and upto <= f.n then return 'OK' end

call('HSET', K.b(batch), 'nonce', nonce, 'open', last == '1' and 0 or 1)
call('HDEL', K.b(batch), 'cut', 'canceled')
local was_done = f.done
reopen(f)
if was_done and not f.fell then rehold(f) end
if last == '1' then
  call('ZREM', K.later, 'upload:' .. batch)
else
  call('ZADD', K.later, int(now + 30000000), 'upload:' .. batch)
end
happened(f, 'grow')
if upto > f.n then
  local writes = {}
  for index = f.n, upto - 1 do
    writes[#writes + 1] = index
    writes[#writes + 1] = ARGV[args + index - start]
  end
  call('HSET', part(batch, 'args'), unpack(writes))
  if marks ~= '' then call('SETRANGE', part(batch, 'marks'), 16 * start, marks) end
  call('HSET', K.b(batch), 'n', upto, 'big', math.max(big, f.big))
  move(f.queue, nil, base(f), upto - f.n)
  local fell = f.fell and not f.hold and f.cur == f.n
  f.n = upto
  if fell then
    move(f.queue, base(f), 'canceled', cut_range(f, 'dependency'))
  elseif not f.hold then
    arm_ttl(f)
    offer(f)
  end
end
finish(batch)
drain()
return 'OK'
