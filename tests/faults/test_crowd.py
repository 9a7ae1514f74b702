"""Many at once: reapers against a late settle, a burst that leaves while a dead worker's lease is pending."""

import sys
import threading
from collections import Counter

from helpers import FIT, claim, ended, eventually, expire, join, leases, submit

import nbqueue
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect

ROUNDS = 1_000


def test_two_reapers_against_a_late_settle(server, broker):
    """Either the settle was in time and stands, or it is stale and the job runs again: never both, never neither."""
    gate, answers, round_ = threading.Barrier(4), [None] * 3, []
    done = [threading.Event() for _ in range(3)]
    after = {0: {1: [0], 2: [0]}, 1: {0: [1, 2]}}  # in the first two rounds: who waits for whom; then all run at once
    connections = [connect(server.url) for _ in range(3)]
    parties = [Broker(each, broker.keys.namespace) for each in connections]

    def takes_part(place):
        for number in range(ROUNDS):
            gate.wait(60)
            worker, lease = round_
            for other in after.get(number, {}).get(place, ()):
                assert done[other].wait(60)
            settles = place == 0
            answers[place] = parties[0].settle(worker, [ended(lease)])[0] if settles else parties[place].reap().jobs
            done[place].set()
            gate.wait(60)

    threads = [threading.Thread(target=takes_part, args=(place,), daemon=True) for place in range(3)]
    for thread in threads:
        thread.start()
    submit(broker, n=ROUNDS)
    join(broker, "other", lease=3600.0)
    ways = Counter()
    for number in range(ROUNDS):
        worker = join(broker, f"w{number}")
        round_[:] = worker, leases(claim(broker, worker, want=1))[0]
        expire(broker, worker)
        for each in done:
            each.clear()
        gate.wait(60)
        gate.wait(60)
        ways[answers[0], answers[1] + answers[2]] += 1
        assert broker.view("b1").tally.started == 0
        if answers[0] == "STALE":
            assert broker.settle("other", [ended(lease) for lease in leases(claim(broker, "other", want=1))]) == ["OK"]
    for thread in threads:
        thread.join(30)
    for each in connections:
        each.close()
    assert set(ways) == {("OK", 0), ("STALE", 1)}, ways  # both happen, and nothing else does
    assert broker.view("b1").tally.finished == ROUNDS
    assert None not in broker.outcomes("b1", range(ROUNDS))


def test_a_burst_fleet_stays_until_the_jobs_of_a_dead_worker_have_run(session, fleet, witness):
    victim = fleet.start(slots=8).up()
    batch = nbqueue.map(witness.job(1.5), range(4))
    witness.watch(batch.id)
    eventually(lambda: len(witness.lives()) == 4)
    bursts = [fleet.start("--burst", slots=2) for _ in range(3)]
    eventually(lambda: all(" is up: " in each.log for each in bursts))
    victim.process.kill()
    assert all(each.process.wait(60) == 0 for each in bursts)
    assert batch.tally.finished == 4, [each.log for each in bursts]
    assert batch.results() == list(range(4))
    witness.check(batch.id)
    witness.check_gone(batch, marks=[each.mark for each in fleet.workers])


def test_what_a_dead_worker_held_runs_without_a_pause_between(session, fleet):
    """Suspects go one by one to who holds nothing else: the next one is asked for as soon as one is settled."""
    batch = nbqueue.map(abs, range(200))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    fit = type(FIT)(keys=session.sealer.keyring.ids, python=version, host="elsewhere")
    session.broker.join("doomed", b"", ["default"], 200, lease=0.3, beat=0.1)
    claimed = session.broker.claim("doomed", "doomed:1", ["default"], free=200, want=200, fit=fit)
    assert len(leases(claimed)) == 200
    fleet.start(lease=4.0, beat=1.0)
    assert batch.wait(60), batch.tally
    assert {job.outcome.attempt for job in batch} == {2}
