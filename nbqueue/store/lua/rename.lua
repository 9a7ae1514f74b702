-- rename: a batch that bears the name `was` bears another one from now on, and `was` is free.
-- Answers 1, 0 if another batch of the same signer bears the new name, -1 (no such batch). A batch that does not bear
-- `was` (any more) is left as it is.
-- ARGV: batch was name
make_room()
local f = facts(batch)
if not f then return -1 end
if f.name ~= was then return 1 end
local bearer = call('HGET', K.name(name), f.signer)
if bearer and bearer ~= batch and facts(bearer) then return 0 end
call('HSET', K.b(batch), 'name', name)
call('HSET', K.name(name), f.signer, batch)
bound_name(name)
if call('HGET', K.name(was), f.signer) == batch then
  call('HDEL', K.name(was), f.signer)
  bound_name(was)
end
return 1
