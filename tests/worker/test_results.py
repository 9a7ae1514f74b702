"""Results and exceptions that are hard to send."""

from __future__ import annotations

import threading

import pytest
from stable_driver import Driver

from nbqueue import wire
from nbqueue.model import Cause, State


class StubbornError(Exception):
    """Can be pickled, but not opened again."""

    def __init__(self, a, b):
        super().__init__(a)
        self.b = b

    def __setstate__(self, state):
        raise LookupError("no")


class OwnError(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b


class MuteError(Exception):
    def __str__(self):
        raise SystemExit

    __repr__ = __str__

    def __reduce__(self):
        raise SystemExit


def raises(error):
    def f(_):
        raise error()

    return f


def outcome_of(function, **limits):
    with Driver(function) as driver:
        return driver.outcome(**limits)


class Exits:
    def __reduce__(self):
        raise SystemExit(0)


def nested():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize("make", [threading.Lock, lambda: (i for i in ()), Exits, nested])
def test_a_result_that_cannot_be_pickled_names_its_cause(make):
    ride = outcome_of(lambda _: make())
    assert ride.cause is Cause.UNSERIALIZABLE
    assert "b:0" in ride.failure.message
    assert any(name in ride.failure.message for name in ("TypeError", "SystemExit", "RecursionError", "PicklingError"))


def test_a_result_over_the_limit_is_stopped_while_it_is_written():
    ride = outcome_of(lambda _: [bytes(1 << 20) + bytes([i]) for i in range(100)], max_result=10 << 20)
    assert ride.cause is Cause.TOO_LARGE
    assert "max_result" in ride.failure.message
    assert ride.value is None


def test_a_big_result_travels_in_a_memfd():
    with Driver(bytes) as driver:
        rides = driver.outcomes(driver.run(10, 5 << 20, 20, 3 << 20))
        assert sorted(driver.fds) == [1, 3]
    assert [len(wire.loads(ride.value)) for ride in rides] == [10, 5 << 20, 20, 3 << 20]


def test_surrogates_in_an_exception_are_escaped():
    ride = outcome_of(raises(lambda: ValueError("bad \udc80 text")))
    assert ride.failure.message == "bad \\udc80 text"
    assert ride.failure.type == "ValueError"


def test_methods_that_raise_do_not_hide_the_failure():
    ride = outcome_of(raises(MuteError))
    assert ride.cause is Cause.ERROR
    assert ride.failure.type.endswith("MuteError")
    assert "SystemExit" in ride.failure.message
    assert ride.failure.pickled is None


def test_a_huge_message_is_cut():
    ride = outcome_of(raises(lambda: ValueError("x" * 50_000_000)))
    assert len(ride.failure.message) <= 8_000
    assert len(ride.failure.traceback) <= 64_000
    assert ride.failure.pickled is None


def test_an_exception_that_cannot_be_opened_again_is_not_sent():
    ride = outcome_of(raises(lambda: StubbornError(1, 2)))
    assert ride.failure.pickled is None
    assert ride.failure.message == "1"


def test_an_exception_with_an_init_of_its_own_is_sent():
    ride = outcome_of(raises(lambda: OwnError(1, 2)))
    assert repr(wire.loads(ride.failure.pickled)) == "OwnError(1)"
    assert wire.loads(ride.failure.pickled).b == 2


def test_the_traceback_shows_the_users_frames_only():
    def inner():
        return {}["missing"]

    ride = outcome_of(lambda _: inner())
    assert ride.failure.type == "KeyError"
    text = ride.failure.traceback
    assert text.startswith("Traceback")
    assert 'return {}["missing"]' in text
    assert "perform.py" not in text
    assert isinstance(wire.loads(ride.failure.pickled), KeyError)


def test_the_traceback_of_a_notebooks_function_says_what_can_be_said():
    names = {}
    exec(compile("def f(x):\n    return 1 / x\n", "/tmp/ipykernel_1/77.py", "exec"), names)
    ride = outcome_of(names["f"], item=0)
    assert 'File "/tmp/ipykernel_1/77.py", line 2, in f' in ride.failure.traceback
    assert ride.failure.traceback.endswith("ZeroDivisionError: division by zero\n")


def test_endless_recursion_is_an_error():
    def f(x):
        return f(x) + 1

    ride = outcome_of(f)
    assert (ride.cause, ride.failure.type) == (Cause.ERROR, "RecursionError")


def test_arguments_that_cannot_be_opened_are_an_error():
    with Driver(lambda _: 1) as driver:
        ride = driver.outcome(b"1garbage")
    assert (ride.state, ride.cause) == (State.FAILED, Cause.ERROR)
