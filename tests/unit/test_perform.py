"""A call and its outcome, in this process (as inline="collect" does it)."""

from __future__ import annotations

import pytest

from nbqueue import current, perform, wire
from nbqueue.errors import JobTimeout
from nbqueue.model import CallbackResult, Cause, Hook, Rerun, State
from nbqueue.policies import Retry
from nbqueue.worker import hooks


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


@pytest.mark.parametrize("function", [lambda: Retry(2, interval=[1, 5]), None])
def test_a_returned_retry_fails_and_asks_for_more_runs(function):
    async def later():
        return Retry(2, interval=[1, 5])

    found = ride(function or later)
    assert (found.state, found.cause, found.value) == (State.FAILED, Cause.RETRY, None)
    assert found.rerun == Rerun(2, (1.0, 5.0))
    assert str(found.failure) == "nbqueue.Retry: the job asked to run again, at most 2 times"


def test_an_error_can_be_kept_with_the_users_frames():
    kept = []

    def f():
        raise KeyError("x")

    perform.perform(f, perform.pack((), {}), job="b", max_result=100, keep=kept.append)
    assert kept[0].__traceback__.tb_frame.f_code.co_name == "f"


def test_callbacks_and_handlers_in_this_process():
    async def told(job, connection, result):
        job.meta["told"] = job.id, connection, result

    def broken(*_):
        raise SystemExit(3)

    with current.inside("b:3", None, 3):
        done = hooks.steps_for("success", {"success": Hook(wire.by_value(told, 1 << 20), "told")})
        assert hooks.respond(done, hooks.Ending(wire.dumps(5, 100))) == [CallbackResult("success", "told")]
        assert current.get_current_job().meta == {"told": ("b:3", None, 5)}
        failed = hooks.steps_for("failure", {}, (broken, lambda *_: False, print))
        echoes = hooks.respond(failed, hooks.Ending(error=ValueError("x")))
    assert [echo.failure and echo.failure.type for echo in echoes] == ["SystemExit", None]
    assert hooks.steps_for("", {"success": Hook(b"", "")}) == []
