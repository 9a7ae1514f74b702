"""What a claim gives is opened only where its signature fits: arguments, the results of another batch, and meta."""

from __future__ import annotations

import struct

import cloudpickle
import pytest

from nbqueue import perform
from nbqueue.model import Cause, JobMeta, Outcome, Spec, State, encode
from nbqueue.store.records import LETTER, Claimed, Grant, Held
from nbqueue.wire import META, OUTCOME, SPEC, Keyring, Sealer
from nbqueue.worker.intake import Intake
from nbqueue.worker.ledger import Ledger

SEALER = Sealer(Keyring([b"a secret of sixteen letters"], "nowhere"), "test")


def outcome(value: object = 7, index: int = 0, batch: str = "first", *, state: State = State.FINISHED) -> bytes:
    pickled = cloudpickle.dumps(value) if state is State.FINISHED else None
    record = Outcome(state, None if pickled else Cause.ERROR, 2, 0, 1, value=pickled)
    return struct.pack(">cH", LETTER[state], 2) + SEALER.seal(OUTCOME, batch, index, encode(record), 2)


def taken(args: bytes, *, meta: bytes = b"", spec: Spec | None = None, source: str = "first"):
    spec = spec or Spec(label="f", source="first")
    sealed = SEALER.seal(SPEC, "second", -1, encode(spec))
    grant = Grant("second", "default", sealed, "k", "w:1", [Held(0, 1, args, False, meta)], source)
    ledger = Ledger(1)
    bad = Intake(None, SEALER, ledger).take(Claimed(0, [grant], {}))
    return list(ledger.tasks.values()), [ride for _, ride in bad]


def test_a_result_becomes_the_only_argument():
    (task,), bad = taken(outcome({"a": 1}))
    assert not bad
    assert perform.unpack(task.payload) == (({"a": 1},), {}, None)
    assert task.queue == "default"


@pytest.mark.parametrize(
    ("args", "source"),
    [
        (outcome(index=1), "first"),  # of another job
        (outcome(batch="other"), "first"),  # of another batch
        (outcome(batch="other"), "other"),  # a store that says so does not make it so
        (outcome(), ""),
        (outcome(state=State.FAILED), "first"),
        (b"c\0\1\x93\xa4user\0\xa0", "first"),  # what a script wrote
        (outcome()[:-1], "first"),
        (b"", "first"),
    ],
)
def test_what_is_no_result_of_that_job_is_refused(args, source):
    tasks, (ride,) = taken(args, source=source)
    assert not tasks
    assert ride.cause is Cause.SIGNATURE


def test_meta_begins_with_the_batchs_and_goes_on_with_the_jobs_own():
    spec = Spec(label="f", source="first", meta=b"\x81\xa1a\x01")
    (task,), _ = taken(outcome(), spec=spec)
    assert task.meta == spec.meta
    own = SEALER.seal(META, "second", 0, encode(JobMeta({"a": 2}, (1, None, ""))))
    (task,), _ = taken(outcome(), spec=spec, meta=own)
    assert task.meta == b"\x81\xa1a\x02"
    for wrong in (own[:-1], SEALER.seal(META, "second", 1, encode(JobMeta()))):
        tasks, (ride,) = taken(outcome(), meta=wrong)
        assert not tasks
        assert ride.cause is Cause.SIGNATURE
