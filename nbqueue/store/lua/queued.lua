-- queued: the batches of a queue that have jobs to hand out, from a position on, at most 1,000; a read.
-- Answers {now, {{batch, values of the fields, length of its log, indexes handed back, cursor, indexes to skip}, ...},
-- next position, 1 if there are more}.
-- ARGV: queue start# fields...
local names = {}
for i = fields, #ARGV do names[#names + 1] = ARGV[i] end
local rows = {}
local ahead = call('LLEN', K.front(queue))
local ids = call('LRANGE', K.front(queue), start, start + 999)
if #ids < 1000 then
  local from = math.max(0, start - ahead)
  for _, batch in ipairs(call('LRANGE', K.q(queue), from, from + 999 - #ids)) do ids[#ids + 1] = batch end
end

-- Entries of `again`, but for those that count no more.
local function handed_back(batch)
  local found, void = {}, {}
  for _, index in ipairs(call('SMEMBERS', part(batch, 'void'))) do void[index] = true end
  for _, entry in ipairs(call('LRANGE', part(batch, 'again'), 0, -1)) do
    local index = string.match(entry, '^%d+')
    if not index then
      -- someone else's
    elseif void[index] then
      void[index] = nil
    else
      found[#found + 1] = tonumber(index)
    end
  end
  return found
end

local function look(batch)
  local v = call('HMGET', K.b(batch), 'n', 'cur', 'hold', 'ttl')
  -- What has waited longer than its ttl waits no more, though nobody may have been up to cancel it.
  local due = v[4] and call('ZSCORE', K.later, 'ttl:' .. batch)
  if due and tonumber(due) <= now then return end
  if v[1] and not v[3] and waiting(batch, tonumber(v[1]), tonumber(v[2])) > 0 then
    rows[#rows + 1] = {batch, call('HMGET', K.b(batch), unpack(names)), call('LLEN', part(batch, 'log')),
      handed_back(batch), tonumber(v[2]), call('SMEMBERS', part(batch, 'skip'))}
  end
end
for _, batch in ipairs(ids) do guarded(look, batch) end
local upto = start + #ids
return {now, rows, upto, #ids == 1000 and 1 or 0}
