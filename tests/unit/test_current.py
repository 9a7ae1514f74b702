"""What a job may ask about itself and say of itself, in this process."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from enum import StrEnum

import msgspec
import numpy as np
import pytest

from nbqueue import current
from nbqueue.current import CurrentJob, get_current_job, pack_meta, unpack_meta
from nbqueue.errors import BadInput
from nbqueue.model import JobMeta


class Colour(StrEnum):
    RED = "red"


def job(meta=b"", arguments=None):
    return CurrentJob("b:3", index=3, attempt=2, func_name="f", queue="low", meta=meta, arguments=arguments)


def test_there_is_a_job_inside_only():
    assert current.current() is get_current_job() is None
    with current.inside("b:3", 7, 3):
        assert current.current() == get_current_job().id == "b:3"
        assert (get_current_job().batch, get_current_job().index) == ("b", 3)
        first = current.rng().random()
    with current.inside("b:3", 7, 3):
        assert current.rng().random() == first
    assert current.current() is get_current_job() is None


def test_the_job_is_made_once_and_when_it_is_asked_for():
    made = []

    def present():
        made.append(job())
        return made[-1]

    with current.inside("b:3", None, 3, present):
        assert not made
        found = []
        threads = [threading.Thread(target=lambda: found.append(get_current_job())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {*map(id, found)} == {id(get_current_job())}
    with current.inside("b:4", None, 4):
        assert get_current_job().id == "b:4"


def test_a_thread_that_may_have_the_number_of_one_that_ended_belongs_to_the_job():
    over, seen = threading.Event(), []
    before = [threading.Thread(target=over.wait) for _ in range(4)]
    for thread in before:
        thread.start()
    with current.inside("d:1", None, 1, job):
        over.set()
        for thread in before:
            thread.join()
        for _ in range(40):  # the system gives a number again soon, though not always
            after = threading.Thread(target=lambda: seen.append(current.current()))
            after.start()
            after.join()
    assert set(seen) == {"d:1"}


def test_other_threads_are_outside_and_may_run_jobs_of_their_own():
    begun, go, seen = threading.Event(), threading.Event(), []

    def other():
        begun.set()
        go.wait(5)
        seen.append(current.current())
        with current.inside("c:1", None, 1, note=lambda *_: seen.append("c:1's note")):
            current.progress(1)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(5)
    said = []
    with current.inside("b:3", None, 3, note=lambda *_: said.append("b:3's note")):
        go.set()
        thread.join()
        assert current.current() == "b:3"
        current.progress(2)
    assert (seen, said) == ([None, "c:1's note"], ["b:3's note"])


def test_arguments_are_opened_when_asked_for():
    opened = []
    found = job(arguments=lambda: opened.append(1) or ((1, 2), {"x": 3}, "label"))
    assert (found.func_name, found.description, found.origin, found.attempt) == ("f", "f", "low", 2)
    assert not opened
    assert (found.args, found.kwargs) == ((1, 2), {"x": 3})
    assert opened == [1]


def test_meta_is_changed_and_saved():
    said = []
    found = job(pack_meta({"a": 1}))
    with current.inside("b:3", None, 3, lambda: found, lambda kind, payload: said.append((kind, payload))):
        here = get_current_job()
        here.meta["b"] = [np.float64(0.5), np.int64(2), Colour.RED, (None, True, b"x")]
        here.save_meta()
        here.progress(1, np.int32(4), "rows")
        current.progress(2.5)
    assert [kind for kind, _ in said] == [current.META, current.PROGRESS, current.PROGRESS]
    meta, first, second = (payload for _, payload in said)
    assert unpack_meta(meta) == {"a": 1, "b": [0.5, 2, "red", [None, True, b"x"]]}
    notes = msgspec.msgpack.decode(b"\x92" + meta + first, type=JobMeta)
    assert notes.progress == (1, 4, "rows")
    assert msgspec.msgpack.decode(second) == [2.5, None, ""]


def test_outside_of_a_job_nothing_is_said():
    current.progress(1, 2)
    current.note(current.META, b"x")
    CurrentJob("b").save_meta()


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"a": {"b": [1, object()]}}, r"meta\['a'\]\['b'\]\[1\] is of type object"),
        ({"when": datetime.now(UTC)}, r"meta\['when'\] is of type datetime"),
        ({1: 2}, "has the key 1"),
        ({"a": {None: 2}}, r"meta\['a'\] has the key None"),
        ({"a": 1 << 70}, "more than 64 bits"),
        ({"a": "x" * (1 << 20)}, "over the limit of 1 MB"),
        ([1], "must be a dict"),
    ],
)
def test_meta_that_is_no_plain_data_is_named(meta, says):
    with pytest.raises(BadInput, match=says):
        pack_meta(meta)


def test_meta_that_holds_itself_is_an_error_and_no_crash():
    meta = {}
    meta["self"] = [meta]
    with pytest.raises(BadInput, match="holds itself"):
        pack_meta(meta)


def test_progress_takes_numbers():
    with current.inside("b:3", None, 3, note=lambda *_: None), pytest.raises(BadInput, match="must be a number"):
        current.progress("half")
