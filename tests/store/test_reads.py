from helpers import claim, ended, join, leases, new_batch, submit

from nbqueue.model import Rerun, State
from nbqueue.store.records import Holder


def test_who_runs_a_job(broker):
    join(broker)
    submit(broker, n=2)
    claim(broker, want=1)
    held, none = broker.holders("b1", [0, 1])
    assert none is None
    assert (held.worker, held.attempt) == ("w1", 1)
    assert 0 <= broker.now_us() - held.since_us < 5_000_000
    assert isinstance(held, Holder)
    assert broker.holders("b1", []) == []


def test_jobs_of_many_batches(broker):
    join(broker)
    for name in ("s0", "s1", "s2"):
        submit(broker, name, n=1, single=True)
    submit(broker, "s3", n=1, delay=1000)
    submit(broker, "s4", source="s1", n=0)
    one, two, *_ = leases(claim(broker, want=2))
    broker.settle("w1", [ended(one), ended(two, State.FAILED)._replace(rerun=Rerun(1, (1000.0,)))])
    pairs = [("s0", 0), ("s1", 0), ("s2", 0), ("s3", 0), ("s4", 0), ("s0", 1), ("s0", -1), ("nothing", 0)]
    states = [State.FINISHED, State.SCHEDULED, State.QUEUED, State.SCHEDULED, State.DEFERRED, None, None, None]
    assert broker.states_of(pairs) == states
    assert [broker.states(batch, [index])[0] for batch, index in pairs] == states
    assert broker.outcomes_of(pairs) == [broker.outcomes(batch, [index])[0] for batch, index in pairs]
    assert broker.states_of([]) == broker.outcomes_of([]) == []


def test_states_of_a_batch_with_a_source_far_into_it(broker):
    join(broker, slots=100)
    submit(broker, n=70)
    broker.submit(new_batch("c", source="b1", queue="then"), [], last=True)
    held = leases(claim(broker))
    broker.settle("w1", [ended(lease) for lease in held if lease.index % 3 == 0])
    wanted = [State.DEFERRED if index % 3 else State.QUEUED for index in range(70)]
    for asked in (range(70), range(13, 70), [69, 13, 30], [68]):
        assert broker.states("c", asked) == [wanted[index] for index in asked]


def test_a_read_of_many_makes_a_round_trip_for_each_thousand(broker, monkeypatch):
    submit(broker, n=2500)
    indexes, pairs = range(2500), [("b1", index) for index in range(2500)]
    trips, pipeline = [], broker.client.pipeline

    def counted(**how):
        trips.append(how)
        return pipeline(**how)

    monkeypatch.setattr(broker.client, "pipeline", counted)
    given = [b"arg%d" % index for index in indexes]
    for read, wanted in (
        (lambda: broker.arguments("b1", indexes), given),
        (lambda: broker.arguments_of(pairs), given),
        (lambda: broker.states("b1", indexes), [State.QUEUED] * 2500),
        (lambda: broker.states_of(pairs), [State.QUEUED] * 2500),
        (lambda: broker.attempts("b1", indexes), [0] * 2500),
        (lambda: [view and view.n for view in broker.views([batch for batch, _ in pairs])], [2500] * 2500),
    ):
        trips.clear()
        assert read() == wanted
        assert len(trips) == 3
