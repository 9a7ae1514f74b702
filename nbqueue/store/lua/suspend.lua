-- suspend: from now on claim gives nothing, for so many ms or (empty) until resume.
-- ARGV: ms
make_room()
if ms == '' then call('SET', K.suspended, '1') else call('SET', K.suspended, '1', 'PX', ms) end
return 1
