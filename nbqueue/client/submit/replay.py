"""One call of a batch again, in this very process: for a debugger, which needs the frames of the exception here."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CoroutineType
from typing import Any

from nbqueue import current, perform, wire
from nbqueue.client.frames import rows
from nbqueue.client.lookup import archive
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.submit import in_process
from nbqueue.current import CurrentJob
from nbqueue.errors import BadInput, Expired
from nbqueue.model import FunctionRecord, decode
from nbqueue.worker import loading, restore


def replay(job: JobRef, func: Callable[..., Any] | None) -> Any:
    """Calls the job's function, or `func`, with its arguments and its random numbers; what it raises comes untouched.

    Nothing is stored. Raises Expired where the arguments are not to be had any more.
    """
    batch, index, spec = job.batch, job.index, job.batch.spec
    payload = rows.payload(batch, index)
    if payload is None:
        raise Expired(what=f"The call of {job.id}", ttl="some time")
    function = func or function_of(batch)
    args, kwargs, _ = perform.unpack(payload)

    def present() -> CurrentJob:
        return CurrentJob(
            job.id,
            batch=batch.id,
            index=index,
            func_name=spec.label,
            description=spec.description,
            queue=batch.queue,
            meta=spec.meta,
            arguments=lambda: perform.unpack(payload),
        )

    with sown(spec.seed, index), current.inside(job.id, spec.seed, index, present):
        value = function(*args, **kwargs)
        return in_process.awaited(value) if isinstance(value, CoroutineType) else value


def function_of(batch: BatchRef) -> Callable[..., Any]:
    """The function as it was sent, with what it took along then; this kernel's own where the server has it no more."""
    if (record := _record(batch)) is not None:
        loading.know_lines(record.sources)
        found: Callable[..., Any] = wire.loads(record.payload)
        return found
    if batch.function is None:
        raise BadInput(message=f"The function of {batch.id} is not to be had any more: give one, as replay(func=f).")
    return batch.function


def callback_of(batch: BatchRef, name: str) -> Callable[..., Any] | None:
    """What is called after success, failure or stop; None: nothing, or the server has it no more."""
    record = _record(batch)
    hook = (batch.hooks if record is None else record.hooks).get(name)
    return None if hook is None else wire.loads(hook.payload)


def _record(batch: BatchRef) -> FunctionRecord | None:
    if batch.inline:
        return None
    sealed = None if batch.watch.gone else batch.session.ask(lambda broker: broker.function(batch.id))
    sealed = archive.function(batch) if sealed is None else sealed
    if sealed is None:
        return None
    opened = batch.session.sealer.unseal(wire.FUNCTION, batch.id, -1, sealed)
    return decode(FunctionRecord, opened, f"The function of {batch.id}")


@contextmanager
def sown(seed: int | None, index: int) -> Iterator[None]:
    """Seeds `random` and NumPy's global state as a job's, while it lasts."""
    if seed is None:
        yield
        return
    numpy = sys.modules.get("numpy.random")
    before, state = random.getstate(), None if numpy is None else numpy.get_state()
    restore.sow(seed, index)
    try:
        yield
    finally:
        restore.forget()
        random.setstate(before)
        if numpy is not None:
            numpy.set_state(state)
        elif (made := sys.modules.get("numpy.random")) is not None:
            made.seed()  # the call has imported it: the caller's own numbers are not the job's
