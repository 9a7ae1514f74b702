"""A call and its outcome, in this process (as inline="collect" does it)."""

from __future__ import annotations

import pytest

from nbqueue import perform, wire
from nbqueue.errors import JobTimeout
from nbqueue.model import Cause, State


def ride(function, *args, max_result=1 << 20, **kwargs):
    return perform.perform(function, perform.pack(args, kwargs), job="b:3", max_result=max_result)


@pytest.mark.parametrize(
    ("args", "kwargs", "label", "kind"),
    [((1,), {}, None, b"1"), ((1, 2), {"x": 3}, None, b"2"), ((), {}, None, b"2"), ((1,), {}, "row", b"3")],
)
def test_arguments_survive_packing(args, kwargs, label, kind):
    payload = perform.pack(args, kwargs, label)
    assert payload[:1] == kind
    assert perform.unpack(payload) == (args, kwargs, label)


def test_a_value_finishes():
    done = ride(lambda x, y=0: x + y, 1, y=2)
    assert (done.state, done.cause, wire.loads(done.value)) == (State.FINISHED, None, 3)
    assert done.started <= done.ended


def test_an_error_fails_with_type_message_and_the_users_frames():
    def f(x):
        return 1 / x

    failure = ride(f, 0).failure
    assert str(failure) == "ZeroDivisionError: division by zero"
    assert "return 1 / x" in failure.traceback
    assert "perform.py" not in failure.traceback.replace("test_perform.py", "")
    assert isinstance(wire.loads(failure.pickled), ZeroDivisionError)


def test_causes_have_their_own_tracebacks():
    def f():
        try:
            {}["inner"]
        except KeyError as why:
            raise ValueError("outer") from why

    text = ride(f).failure.traceback
    assert text.index("inner") < text.index("direct cause") < text.index("outer")


def test_a_timeout_is_one():
    def f():
        raise JobTimeout("too long")

    assert ride(f).cause is Cause.TIMEOUT


def test_a_small_limit_holds_for_plain_values_too():
    assert ride(lambda: "x" * 5000, max_result=100).cause is Cause.TOO_LARGE


def test_current_is_known_inside_only():
    assert perform.current() is None
    with perform.inside("b:3", 7, 3):
        assert perform.current() == "b:3"
        first = perform.rng().random()
    with perform.inside("b:3", 7, 3):
        assert perform.rng().random() == first
    assert perform.current() is None


def test_a_note_without_a_worker_does_nothing():
    perform.note(1, b"x")
