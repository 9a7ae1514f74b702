"""Running a batch in this very process: for %debug, and for testing one's code without a server.

Arguments and results go through pickle all the same, so that what works here works in a job.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar

from nbqueue import perform, settings, wire
from nbqueue.client.watch import Watch
from nbqueue.errors import BadInput
from nbqueue.model import Outcome, Ride, Spec, State, Tally, job_id

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch

T = TypeVar("T")


def run(watch: Watch, spec: Spec, function: Callable[..., Any] | None, mode: bool | str, payloads: list[bytes]) -> None:
    """Runs all payloads in order. `mode` True lets the first exception through untouched; "collect" keeps outcomes."""
    if function is None:
        raise BadInput(message="inline needs a function that can be imported here.")
    watch.payloads = payloads
    watch.created_us = _now_us()
    watch.known = True
    _ride(watch, spec, function, mode, range(len(payloads)))


def again(batch: Batch[Any], indexes: list[int], func: Callable[..., Any] | str | None, spec: Spec) -> None:
    """A retry of an inline batch."""
    if isinstance(func, str):
        raise BadInput(message="An inline batch takes a function, not a dotted name.")
    batch.function = func or batch.function
    assert batch.function is not None
    for index in indexes:
        batch.watch.withdraw(index)
    _ride(batch.watch, spec, batch.function, batch.inline, indexes)


def _ride(watch: Watch, spec: Spec, function: Callable[..., Any], mode: bool | str, indexes: Iterable[int]) -> None:
    assert watch.payloads is not None
    n = len(watch.payloads)
    allowed = _allowed(watch, n)
    failed = 0
    for index in indexes:
        if allowed is not None and failed > allowed:
            outcome = Outcome(State.CANCELED, None, 0, _now_us(), 0)
        elif mode is True:
            outcome = _straight(watch, spec, function, index)
        else:
            outcome = _collected(watch, spec, function, index)
        failed += outcome.state is State.FAILED
        watch.put_opened(index, outcome)
    watch.tally = _tally(watch, n)
    watch.over = True


def _allowed(watch: Watch, n: int) -> float | None:
    allowed = watch.max_failed
    return allowed * n if allowed is not None and 0 < allowed < 1 else allowed


def _tally(watch: Watch, n: int) -> Tally:
    states = [watch.state(index) for index in range(n)]
    counts = {str(state): states.count(state) for state in (State.FINISHED, State.FAILED, State.CANCELED)}
    return Tally(n=n, **counts)


def _straight(watch: Watch, spec: Spec, function: Callable[..., Any], index: int) -> Outcome:
    assert watch.payloads is not None
    args, kwargs, _ = perform.unpack(watch.payloads[index])
    begun_us, begun = _now_us(), time.monotonic()
    with perform.inside(job_id(watch.batch, index), spec.seed, index):
        value = function(*args, **kwargs)
        if isinstance(value, CoroutineType):
            value = _awaited(value)
    runtime_us = int((time.monotonic() - begun) * 1e6)
    data = wire.dumps(value, spec.max_result, "The result")
    return Outcome(State.FINISHED, None, 1, begun_us, runtime_us, host=settings.host(), worker="inline", value=data)


def _collected(watch: Watch, spec: Spec, function: Callable[..., Any], index: int) -> Outcome:
    assert watch.payloads is not None
    job, begun_us = job_id(watch.batch, index), _now_us()
    payload = watch.payloads[index]

    def ride() -> Ride:
        return perform.perform(function, payload, job=job, max_result=spec.max_result)

    with perform.inside(job, spec.seed, index):
        found = _aside(ride) if _in_loop() and inspect.iscoroutinefunction(function) else ride()
    return _outcome(found, begun_us)


def _awaited(value: CoroutineType[Any, Any, Any]) -> Any:
    return _aside(lambda: asyncio.run(value)) if _in_loop() else asyncio.run(value)


def _in_loop() -> bool:
    """Whether this thread runs an event loop, as a notebook's does: another one must then run elsewhere."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _aside(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _outcome(ride: Ride, begun_us: int) -> Outcome:
    return Outcome(
        ride.state,
        ride.cause,
        1,
        begun_us,
        int((ride.ended - ride.started) * 1e6),
        int(ride.cpu_s * 1e6),
        host=settings.host(),
        worker="inline",
        failure=ride.failure,
        value=ride.value,
    )


def _now_us() -> int:
    return int(time.time() * 1e6)
