-- release: a worker gives jobs back, uncharged. With a `lasting` of 0 or more it could not load their function; if every
-- living worker of their queues has said so for as many ms, it answers 1 and keeps them, to settle them as failed.
-- ARGV: worker lasting# entries...
make_room()
local groups, order = {}, {}
for i = entries, #ARGV, 4 do
  local batch = ARGV[i]
  if not groups[batch] then
    groups[batch] = {}
    order[#order + 1] = batch
  end
  table.insert(groups[batch], {ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]})
end

-- The jobs of a batch that this worker still holds.
local function standing(batch)
  local indexes, items = {}, {}
  for i, entry in ipairs(groups[batch]) do indexes[i] = entry[1] end
  for i, run in ipairs(call('HMGET', part(batch, 'run'), unpack(indexes))) do
    local token, attempt, losses, cap = lease_of(run or '')
    local entry = groups[batch][i]
    if token == entry[2] and worker_of(token) == worker then
      if entry[3] ~= '1' then attempt = attempt - 1 end -- it had not begun: this was no run
      items[#items + 1] = {entry[1], attempt, worker, losses, cap}
    elseif not token or worker_of(token) ~= worker then
      call('SREM', K.held(worker), batch .. ':' .. entry[1])
    end
  end
  return items
end

if lasting >= 0 then
  local refused, any = true, false
  local function mark(batch)
    local f = facts(batch)
    if f then
      any = true
      local key, at = K.unfit(f.key), math.floor(now / 1000)
      local last = call('ZSCORE', key, worker)
      if not last or tonumber(last) < at - 60000 then call('ZADD', key, int(at + lasting), ':' .. worker) end
      call('ZADD', key, int(at), worker)
      call('PEXPIRE', key, 60000)
      refused = refused and all_refused(f.queue, f.key)
    end
  end
  for _, batch in ipairs(order) do guarded(mark, batch) end
  if any and refused then return 1 end
end
local function give_back(batch)
  local f = facts(batch)
  if f then
    local items = standing(batch)
    sound(batch, 'again')
    hand_back(f, items)
    unhand(f, items)
  end
end
for _, batch in ipairs(order) do guarded(give_back, batch) end
return 0
