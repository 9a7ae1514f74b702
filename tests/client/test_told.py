"""How a job ended is told alike by all that tell it, also where its outcome cannot be read, or is lost."""

import pytest
from helpers import wait_until

import nbqueue
from nbqueue import Queue
from nbqueue.client.batch import Batch
from nbqueue.client.jobs import Jobs
from nbqueue.client.lookup import find
from nbqueue.client.panel import job_details
from nbqueue.client.panel.failures import FailureGroups
from nbqueue.errors import BatchFailed
from nbqueue.model import Cause


def half(x):
    return 1 / x


def forged(session, other, batch, index):
    """What another session knows of a batch, of which one outcome was changed in the store after it was signed."""
    broker = session.broker
    key = broker.keys.part(batch.id, "out")
    blob = broker.client.hget(key, index)
    broker.client.hset(key, index, blob[:-1] + bytes([blob[-1] ^ 1]))
    return Batch(find.attach(other, batch.id))


def tellers(batch):
    """What each says of job 1: its cause."""
    job, groups = batch[1], FailureGroups(str)
    groups.add(batch.ref)
    wait_until(groups.update)
    told = job_details.details_of(batch.ref, 1)
    frame = batch.to_frame(wait=False, meta=True)
    return {
        "frame": (frame["status"][1], frame["cause"][1]),
        "gather": tuple(nbqueue.gather([job])[["status", "error"]].iloc[0]),
        "job": job.error,
        "details": (told.facts, told.traceback),
        "groups": [kind.what for kind in groups.groups()],
        "causes": Jobs([job], "one").causes,
        "table": repr(Jobs([job], "one")).splitlines()[-1],
    }


def test_an_outcome_that_is_not_signed_by_us_is_a_failure_wherever_it_is_told(session, other, busy, monkeypatch):
    for each in (session, other):
        monkeypatch.setattr(each.spool, "why", "this test damages what it copies")
    batch = nbqueue.map(half, [1, 0, 2])
    batch.wait(20)
    seen = forged(session, other, batch, 1)
    seen.wait(20)
    error = seen[1].error
    assert "has no valid signature" in error
    assert tellers(seen) == {
        "frame": ("failed", "signature"),
        "gather": ("failed", error),
        "job": error,
        "details": ("cause signature", error),
        "groups": [error[:159] + "…"],
        "causes": {"signature": 1},
        "table": f"{seen[1].id}  signature  {error[:117]}...",
    }
    row = Queue("default").to_frame().set_index("job_id").loc[seen[1].id]
    assert (row["status"], row["cause"], row["error"]) == ("failed", "signature", error)
    with pytest.raises(BatchFailed, match="BadSignature"):
        seen.results()


def test_a_job_that_the_server_lost_is_a_failure_wherever_it_is_told(session, other):
    batch = nbqueue.map(half, [1, 0, 2])
    batch.cancel()
    found = Batch(find.fetch(other, batch[1].id).batch)
    found.ref.state.gone = "lost"
    cause = Cause.LOST_BY_SERVER
    assert (found[1].error, job_details.details_of(found.ref, 1).facts) == (cause, f"cause {cause}")
    assert Jobs([found[1]], "one").causes == {cause: 1}
    assert list(found.to_frame(wait=False, meta=True)["cause"]) == [cause] * 3
    assert [job.index for job in found.failed] == [0, 1, 2]
