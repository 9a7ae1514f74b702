-- retry: withdraws outcomes, which opens a new run of their jobs. Names the attempts that the caller saw, and a nonce:
-- the same one again answers as before. Answers how many, or -1 (no such batch).
-- ARGV: batch nonce fn key spec signer python host rows...
make_room()
local f = facts(batch)
if not f then return -1 end
local before = call('HGET', K.b(batch), 'rn') or ''
local answered = string.match(before, ' ' .. string.gsub(nonce, '%p', '%%%0') .. '=(%d+) ')
if answered then return tonumber(answered) end

local out, past, skip, void = part(batch, 'out'), part(batch, 'past'), part(batch, 'skip'), part(batch, 'void')
local back, from, told, number = {}, {F = 0, X = 0, C = 0}, {}, 0

local function withdraw(index, letter, attempt, blob)
  local older = call('HGET', past, index) or ''
  call('HSET', past, index, older .. struct.pack('>I4', #blob) .. blob)
  if blob ~= '' then call('HDEL', out, index) end
  call('HDEL', part(batch, 'tail'), index)
  if letter == 'X' then call('SREM', part(batch, 'bad'), index) end
  from[letter] = from[letter] + 1
  if call('SREM', skip, index) == 1 then
    call('SADD', part(batch, 'redo'), index)
  elseif call('SREM', void, index) == 0 then
    back[#back + 1] = index .. ' ' .. attempt .. ' 0 0'
  end
  told[#told + 1] = 'r' .. index
  number = number + 1
end

for i = rows, #ARGV, 2 do
  local index, seen = ARGV[i], tonumber(ARGV[i + 1])
  local blob = call('HGET', out, index)
  if blob then
    local attempt = struct.unpack('>I2', string.sub(blob, 2, 3))
    if attempt == seen then withdraw(index, string.upper(string.sub(blob, 1, 1)), attempt, blob) end
  elseif seen == 0 and in_cut(f.cuts, tonumber(index)) and call('HEXISTS', past, index) == 0 then
    withdraw(index, 'C', 0, '')
  end
end

if number > 0 then
  if fn ~= '' then call('SET', part(batch, 'fn'), fn) end
  for name, value in pairs({key = key, spec = spec, signer = signer, python = python, host = host}) do
    if value ~= '' then call('HSET', K.b(batch), name, value) end
  end
  for letter, by in pairs(from) do
    count(f, FIELD[letter], -by)
    move(f.queue, WORD[letter], 'queued', by)
  end
  if #back > 0 then call('RPUSH', part(batch, 'again'), unpack(back)) end
  tell(f, told)
  reopen(f)
  arm_ttl(f)
  offer(f)
end
-- The last eight answers are kept.
local kept = {}
for word in string.gmatch(before, '%S+') do kept[#kept + 1] = word end
kept[#kept + 1] = nonce .. '=' .. number
while #kept > 8 do table.remove(kept, 1) end
call('HSET', K.b(batch), 'rn', ' ' .. table.concat(kept, '  ') .. ' ')
return number
