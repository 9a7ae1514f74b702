-- join: a worker enters, under an id that nobody had before.
-- ARGV: worker info slots lease# beat# epoch host queues...
make_room()
outage()
if call('HEXISTS', K.w(worker), 'dead') == 1 then return -1 end
call('SET', K.epoch, epoch, 'NX')
call('HSET', K.w(worker), 'info', info, 'slots', slots, 'beat', int(beat), 'host', host,
  'queues', table.concat(ARGV, '\n', queues))
call('ZADD', K.workers, int(math.floor(now / 1000 + lease)), worker)
for i = queues, #ARGV do
  call('HSET', K.slots(ARGV[i]), worker, slots)
  call('SADD', K.queues, ARGV[i])
end
set_pulse(beat, lease)
return now
