"""Results and exceptions that are hard to send, to store, to show, or to open: each costs one row, and says why."""

import os
import threading

import pytest
from witness import noting

import nbqueue
from nbqueue.client.batch import Batch
from nbqueue.errors import NotPicklable
from nbqueue.model import Cause


class Reduced:
    """Does this when it is pickled."""

    def __init__(self, deed):
        self.deed = deed

    def __reduce__(self):
        return self.deed()


def raises():
    raise LookupError("as it is pickled")


def loops():
    while True:
        pass


class MuteError(Exception):
    def __str__(self):
        raise SystemExit("in __str__")

    __repr__ = __str__


def nested():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def noted(error, notes):
    for note in notes:
        error.add_note(note)
    raise error


def thrown(error):
    raise error


class Trap:
    """Raises where it is opened."""

    def __init__(self, deed):
        self.deed = deed

    def __reduce__(self):
        return self.deed, ("as it is opened",)


def refuses(text):
    raise SystemError(text)


def loops_with(text):
    loops()


def leaves(text):
    raise SystemExit(text)


RESULTS = {  # kind -> what makes it, the cause (None: it finishes), a word of the error
    "plain": (lambda: {"a": 1}, None, ""),
    "lock": (threading.Lock, Cause.UNSERIALIZABLE, "lock"),
    "lambda": (lambda: lambda x: x + 1, None, ""),
    "generator": (lambda: (i for i in ()), Cause.UNSERIALIZABLE, "generator"),
    "raises": (lambda: Reduced(raises), Cause.UNSERIALIZABLE, "LookupError: as it is pickled"),
    "exits": (lambda: Reduced(lambda: os._exit(5)), Cause.CRASHED, "exit code 5"),
    "sys.exit": (lambda: Reduced(lambda: leaves("now")), Cause.UNSERIALIZABLE, "SystemExit"),
    "loops": (lambda: Reduced(loops), Cause.TIMEOUT, "time limit"),
    "deep": (nested, Cause.UNSERIALIZABLE, "ecursion"),
    "large": (lambda: bytes(2 << 20), Cause.TOO_LARGE, "max_result"),
    "surrogates": (lambda: thrown(ValueError("bad \udc80 text")), Cause.ERROR, "bad \\udc80 text"),
    "mute": (lambda: thrown(MuteError()), Cause.ERROR, "SystemExit"),
    "50 MB": (lambda: noted(ValueError("long"), ["y" * 99] * 500_000), Cause.ERROR, "ValueError: long"),
    "refuses": (lambda: Trap(refuses), Cause.UNSERIALIZABLE, "cannot be unpickled (SystemError: as it is opened)"),
    "leaves": (lambda: Trap(leaves), Cause.UNSERIALIZABLE, "cannot be unpickled (SystemExit: as it is opened)"),
    "opens for ever": (lambda: Trap(loops_with), Cause.TIMEOUT, "time limit"),
}


def gives(kind, path):
    with noting(path):
        return RESULTS[kind][0]()


def test_each_costs_its_own_row_and_no_other(session, fleet, witness):
    worker = fleet.start().up()
    endless = ["loops", "opens for ever"]
    kinds = [kind for kind in RESULTS if kind not in endless]
    batch = nbqueue.options(max_result=1 << 20).starmap(gives, [(kind, str(witness.path)) for kind in kinds])
    witness.watch(batch.id)
    assert batch.wait(90), worker.log
    frame = batch.to_frame(meta=True).set_index("kind")
    for kind in kinds:
        _, cause, word = RESULTS[kind]
        row = frame.loc[kind]
        assert row["status"] == ("failed" if cause else "finished"), row
        if cause:
            assert (row["cause"], word in row["error"]) == (str(cause), True), (kind, row["error"])
    assert frame.loc["lambda", "result"](1) == 2
    told = batch[kinds.index("50 MB")].outcome.failure
    assert "bytes left out" in told.traceback
    assert len(told.traceback) <= 64_000
    for kind in endless:
        job = nbqueue.options(timeout=1).submit(gives, kind, str(witness.path))  # it is loaded by now
        assert Batch(job.batch).wait(30)
        assert (job.outcome.cause, "time limit" in job.error) == (Cause.TIMEOUT, True)
    witness.check(batch.id)
    worker.stop()
    witness.check_gone(batch, marks=[worker.mark])


def test_a_result_that_raises_when_it_is_opened_has_failed(session, fleet):
    fleet.start().up()
    job = nbqueue.submit(lambda: Trap(refuses))
    with pytest.raises(NotPicklable, match=r"cannot be unpickled \(SystemError: as it is opened\)\. Return plain"):
        job.wait(20)
    assert (job.status, job.cause, "in refuses" in job.exc_info) == ("failed", Cause.UNSERIALIZABLE, True)
