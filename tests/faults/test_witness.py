"""The witness itself: it is content with what is right, and says what is wrong."""

import time

import pytest
from witness import Life, apart

import nbqueue


def test_it_is_content_with_an_ordinary_batch(session, fleet, witness):
    worker = fleet.start().up()
    batch = nbqueue.map(witness.job(), range(6))
    witness.watch(batch.id)
    assert batch.results() == list(range(6))
    witness.check(batch.id)
    worker.stop()
    witness.check_gone(batch, marks=[worker.mark])


def test_it_notices_an_outcome_that_was_replaced(session, fleet, witness):
    fleet.start().up()
    batch = nbqueue.map(witness.job(), range(2))
    assert batch.wait(10)
    witness.look(batch.id)
    out = session.broker.keys.part(batch.id, "out")
    other = session.broker.client.hget(out, "0")
    session.broker.client.hset(out, "0", other[:-1] + bytes([other[-1] ^ 1]))
    with pytest.raises(AssertionError, match="I2"):
        witness.look(batch.id)


def test_it_notices_a_tally_that_does_not_sum(session, witness):
    batch = nbqueue.map(witness.job(), range(2))
    assert batch.ref.session.broker.view(batch.id)
    session.broker.client.hincrby(session.broker.keys.at("b", batch.id), "nfin", 1)
    try:
        with pytest.raises(AssertionError, match="I5"):
            witness.look(batch.id)
    finally:
        session.broker.client.hincrby(session.broker.keys.at("b", batch.id), "nfin", -1)
        batch.cancel()


def test_one_who_was_stopped_whole_may_go_on_for_a_moment_when_it_is_woken():
    def run(begin, *lines):
        return Life("w", 1, 1, begin, lines[-1], None, [begin, *lines])

    after = run(14.0, 15.0)
    for before in (run(10.0, 10.05, 14.5), run(10.0, 10.05, 14.5, 15.4)):
        with pytest.raises(AssertionError, match="I4"):
            apart("j:0", [before, after])
        apart("j:0", [before, after], woken=True)
    for before in (run(10.0, 13.5, 14.1), run(10.0, 10.05, 14.5, 15.6)):
        with pytest.raises(AssertionError, match="I4"):
            apart("j:0", [before, after], woken=True)


def test_it_notices_two_runs_at_a_time_and_an_outcome_without_its_run(session, fleet, witness):
    fleet.start().up()
    batch = nbqueue.map(witness.job(0.2), range(1))
    assert batch.wait(10)
    first = witness.lives()[batch.id, 0][0]
    with witness.path.open("a") as file:
        file.write(f"begin {first.begin + 0.05} {batch.id} 0 2 another/1/1/ 1\n")
    with pytest.raises(AssertionError, match="I4"):
        witness.check(batch.id)
    lines = [line for line in witness.path.read_text().splitlines() if not line.startswith("end")]
    witness.path.write_text("\n".join(lines[:1]) + "\n")
    with pytest.raises(AssertionError, match="I3"):
        witness.check(batch.id)
    assert time.monotonic() > first.begin
