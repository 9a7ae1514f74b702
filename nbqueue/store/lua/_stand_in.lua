-- The two libraries of Redis's Lua that our scripts use, as far as they use them, for what stands in for a server in a
-- test and lacks them (fakeredis). Never sent to a server.
local function bytes_of(value, count)
  local text = ''
  for _ = 1, count do
    text = string.char(value % 256) .. text
    value = math.floor(value / 256)
  end
  return text
end

local function number_in(text, from, count)
  local value = 0
  for place = from, from + count - 1 do value = value * 256 + string.byte(text, place) end
  return value
end

local struct = {
  pack = function(layout, value) return bytes_of(value, tonumber(string.sub(layout, 3))) end,
  unpack = function(layout, text) return number_in(text, 1, tonumber(string.sub(layout, 3))) end,
}

local function packed(value)
  if type(value) == 'string' then
    local size = #value
    if size < 32 then return string.char(160 + size) .. value end
    if size < 65536 then return string.char(218) .. bytes_of(size, 2) .. value end
    return string.char(219) .. bytes_of(size, 4) .. value
  elseif type(value) == 'number' then
    if value >= 0 and value < 128 then return string.char(value) end
    return string.char(207) .. bytes_of(value, 8)
  end
  local parts = {string.char(221) .. bytes_of(#value, 4)}
  for i, each in ipairs(value) do parts[i + 1] = packed(each) end
  return table.concat(parts)
end

local function unpacked(text, at)
  local kind = string.byte(text, at)
  if kind < 128 then return kind, at + 1 end
  if kind == 207 then return number_in(text, at + 1, 8), at + 9 end
  if kind == 221 then
    local found, size = {}, number_in(text, at + 1, 4)
    at = at + 5
    for i = 1, size do found[i], at = unpacked(text, at) end
    return found, at
  end
  local width = kind == 218 and 2 or kind == 219 and 4 or 0
  local size = width == 0 and kind - 160 or number_in(text, at + 1, width)
  local from = at + 1 + width
  return string.sub(text, from, from + size - 1), from + size
end

local cmsgpack = {pack = packed, unpack = function(text) return (unpacked(text, 1)) end}
