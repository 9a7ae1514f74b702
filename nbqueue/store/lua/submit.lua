-- submit: a new batch with its first arguments. The only one, with extend, that a full server may refuse.
-- Answers {OK, epoch, state, n}, {name} or {id} for what is in use, {NEED, batch} for what is not there, {FULL}.
-- LATER: cutting dependents pairs -> standing fall rescan
-- ARGV: batch queue session name nonce spec fn key signer python host rttl fttl ttl front single epoch last big# due
-- ARGV: delay source meta marks most# needs# rest...
local args = rest + needs

-- Where its jobs are: all in the same state, as long as nothing happened to one.
local function answer()
  local v = call('HMGET', K.b(batch), 'hold', 'n', 'ncan', 'ndef', 'done')
  local n = tonumber(v[2])
  local state = BASE[v[1]] or n > 0 and n == tonumber(v[4] or '0') and 'deferred' or 'queued'
  if v[5] and n > 0 and n == tonumber(v[3]) then state = 'canceled' end
  return {'OK', call('GET', K.epoch), state, n}
end

local here = call('HGET', K.b(batch), 'nonce')
if here then return here == nonce and answer() or {'id'} end
if call('ZCARD', K.open(queue)) >= most then return {'FULL'} end
if name ~= '' then
  local bearer = call('HGET', K.name(name), signer)
  if bearer and bearer ~= batch and call('EXISTS', K.b(bearer)) == 1 then
    local exp = call('HGET', K.b(bearer), 'exp')
    if not exp or tonumber(exp) > now then return {'name'} end
  end
end
local found = {}
for i = rest, args - 1 do
  local selector, _, parent = string.match(ARGV[i], '^([^:]+):([^:]+):(.*)$')
  local p = facts(parent)
  if not p then return {'NEED', parent} end
  if selector ~= '*' and tonumber(selector) >= p.n then return {'NEED', parent .. ':' .. selector} end
  found[i] = p
end
local origin = source ~= '' and facts(source) or nil
if source ~= '' and not origin then return {'NEED', source} end

local n = origin and origin.n or #ARGV - args + 1
local open = last == '1' and '0' or '1'
if origin then open = origin.open end
call('HSET', K.b(batch), 'queue', queue, 'session', session, 'nonce', nonce, 'spec', spec, 'key', key,
  'signer', signer, 'python', python, 'host', host, 'rttl', rttl, 'fttl', fttl, 'front', front, 'single', single,
  'n', n, 'cur', origin and n or 0, 'nrun', 0, 'nfin', 0, 'nfail', 0, 'ncan', 0, 'open', open, 'created', int(now), 'big', big)
local f = {batch = batch, queue = queue, session = session, single = single, front = front, nopen = 0, nbad = 0,
  n = n, cur = origin and n or 0, ndef = 0, npark = 0, due = tonumber(due) or delay ~= '' and now + tonumber(delay) or nil}
if ttl ~= '' then
  f.ttl = tonumber(ttl)
  call('HSET', K.b(batch), 'ttl', ttl)
end
call('SET', K.epoch, epoch, 'NX')
call('SET', part(batch, 'fn'), fn)
know(queue)
call('ZADD', K.open(queue), int(now), batch)
call('ZADD', K.batches, '+inf', batch)
if name ~= '' then
  call('HSET', K.b(batch), 'name', name)
  call('HSET', K.name(name), signer, batch)
  call('PERSIST', K.name(name))
end
if last ~= '1' and not origin then call('ZADD', K.later, int(now + 30000000), 'upload:' .. batch) end
if meta ~= '' then
  call('HSET', K.b(batch), 'meta', '1')
  call('HSET', part(batch, 'meta'), 0, meta)
end

if marks ~= '' then call('SET', part(batch, 'marks'), marks) end

-- Says in the parent that somebody depends on it.
local function enter(p, which, flag)
  call('ZADD', part(p.batch, 'then'), 0, which .. batch)
  local deps = call('HGET', K.b(p.batch), 'deps') or ''
  if not string.find(deps, flag, 1, true) then call('HSET', K.b(p.batch), 'deps', deps .. flag) end
  adopt(p.batch, batch)
end

local links = (origin or needs > 0) and later()
for i, p in pairs(found) do
  local which, selector, allow = string.match(ARGV[i], '^(([^:]+):([^:]+):)')
  local is = links.standing(p, selector, allow)
  if call('HSETNX', part(batch, 'waits'), ARGV[i], is) == 1 then
    if is == 'o' then f.nopen = f.nopen + 1 elseif is == 'x' then f.nbad = f.nbad + 1 end
    enter(p, which, selector == '*' and '*' or 'i')
  end
end
if origin then
  f.src = source
  enter(origin, '=:0:', '=')
  call('HSET', K.b(batch), 'src', source, 'ndef', n, 'big', 1000000000000)
end
if origin or needs > 0 then
  call('HSET', K.b(batch), 'needs', '1', 'nopen', f.nopen, 'nbad', f.nbad)
  if f.nopen + f.nbad > 0 then f.hold = 'D' end
end
if f.due then
  call('HSET', K.b(batch), 'due', int(f.due))
  if not f.hold and f.due > now then f.hold = 'S' end
end
if f.hold then call('HSET', K.b(batch), 'hold', f.hold) end
if f.hold == 'S' then
  call('ZADD', K.later, int(f.due), 'run:' .. batch)
  ring(queue) -- an idle worker learns when
end
if origin then
  move(queue, nil, 'deferred', n)
  if origin.nfin + origin.nfail + origin.ncan > 0 then
    links.rescan(batch, 0)
  end
elseif n > 0 then
  local writes = {}
  for i = 0, n - 1 do
    writes[2 * i + 1] = i
    writes[2 * i + 2] = ARGV[args + i]
  end
  call('HSET', part(batch, 'args'), unpack(writes))
  move(queue, nil, base(f), n)
  if not f.hold then
    arm_ttl(f)
    offer(f)
  end
end
if f.nbad > 0 then links.fall(facts(batch)) end
if n == 0 or links then
  finish(batch)
  return answer()
end
return {'OK', call('GET', K.epoch), base(f), n}
