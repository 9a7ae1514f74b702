-- submit: a new batch with its first arguments. The only one, with extend, that a full server may refuse.
-- Answers OK, or what is in use: name, id.
-- ARGV: batch queue session name nonce spec fn key signer python host rttl fttl ttl front single epoch last big# args...
local here = call('HGET', K.b(batch), 'nonce')
if here then return here == nonce and 'OK' or 'id' end
if name ~= '' then
  local bearer = call('HGET', K.name(name), signer)
  if bearer and bearer ~= batch and call('EXISTS', K.b(bearer)) == 1 then
    local exp = call('HGET', K.b(bearer), 'exp')
    if not exp or tonumber(exp) > now then return 'name' end
  end
end
local n = #ARGV - args + 1
call('HSET', K.b(batch), 'queue', queue, 'session', session, 'nonce', nonce, 'spec', spec, 'key', key,
  'signer', signer, 'python', python, 'host', host, 'rttl', rttl, 'fttl', fttl, 'front', front, 'single', single,
  'n', n, 'cur', 0, 'nrun', 0, 'nfin', 0, 'nfail', 0, 'ncan', 0, 'open', last == '1' and 0 or 1, 'created', int(now), 'big', big)
local f = {batch = batch, queue = queue, session = session, single = single, front = front}
if ttl ~= '' then
  f.ttl = tonumber(ttl)
  call('HSET', K.b(batch), 'ttl', ttl)
end
call('SET', K.epoch, epoch, 'NX')
call('SET', part(batch, 'fn'), fn)
if call('SADD', K.queues, queue) == 1 then
  -- A worker of every queue there is learns of a new one.
  for _, worker in ipairs(call('ZRANGE', K.workers, 0, 99)) do
    call('RPUSH', K.mail(worker), 'look')
    call('PEXPIRE', K.mail(worker), 3600000)
  end
end
call('ZADD', K.open(queue), int(now), batch)
call('ZADD', K.batches, '+inf', batch)
if name ~= '' then
  call('HSET', K.b(batch), 'name', name)
  call('HSET', K.name(name), signer, batch)
  call('PERSIST', K.name(name))
end
if last ~= '1' then call('ZADD', K.later, int(now + 30000000), 'upload:' .. batch) end
if n > 0 then
  local writes = {}
  for i = 0, n - 1 do
    writes[2 * i + 1] = i
    writes[2 * i + 2] = ARGV[args + i]
  end
  call('HSET', part(batch, 'args'), unpack(writes))
  move(queue, nil, 'queued', n)
  arm_ttl(f)
  offer(f)
end
finish(batch)
return 'OK'
