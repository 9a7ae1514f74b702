"""retry: which rows, with which function, under which limits."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import TYPE_CHECKING, Any

import msgspec

from nbqueue import checks, wire
from nbqueue.checks import brief
from nbqueue.client.calls import dataframes, fingerprint, function_diff
from nbqueue.client.calls.function import describe
from nbqueue.client.lookup import refresh, results, waiting
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.session.session import tell
from nbqueue.client.submit import in_process, restore
from nbqueue.errors import BadInput, BadOption, Expired
from nbqueue.model import FunctionRecord, Hook, Options, Spec, State, decode, encode, new_id

if TYPE_CHECKING:
    from nbqueue.client.state.batch_state import BatchState

LIMITS = ("timeout", "grace", "isolate", "slice", "preload", "max_result", "spill", "queue")


def retry(
    batch: BatchRef,
    rows: Any,
    func: Callable[..., Any] | str | None,
    limits: dict[str, Any],
    *,
    warn: bool = True,
    front: bool = False,
) -> int:
    """Runs rows of `batch` again, before others if `front`; answers how many. Raises BadInput or BadOption."""
    waiting.refuse_unsent(batch)
    lost = restore.revived(batch) if batch.state.gone else None
    indexes = chosen(batch, rows)
    if lost and rows is None:
        indexes = sorted({*indexes, *lost})
    spec, queue = limited(batch.spec, limits)
    _refuse_running(batch, func, queue)
    if not indexes and not batch.state.gone:
        if warn:
            tell(f"nbqueue: nothing to retry: {idle(batch) if rows is None else 'no rows were named.'}")
        return 0
    if func is None and warn and (told := changed(batch)):
        checks.warn(told)
    if batch.inline:
        in_process.again(batch, indexes, func, spec)
        return len(indexes)
    session, state = batch.session, batch.state
    spec, changes = _changes(batch, func, spec, queue)
    if state.gone:
        raise waiting.absence(state, session, batch.id)
    seen = [(index, state.outcomes.attempt(index)) for index in indexes]
    nonce = new_id("retry", 12)
    session.attend()
    count = session.ask(lambda broker: broker.retry(batch.id, seen, nonce=nonce, front=front, **changes))
    batch.spec = spec
    if count and ("function" in changes or "spec" in changes):
        session.spool.add_function(state, changes.get("function", b""), changes.get("spec", b""))
    _take_in(batch, seen, count, queue)
    if count < len(indexes):
        # Others ran them again, or the server went back and they ran anew: the next retry must name what stands now.
        refresh.look([JobRef(batch, index) for index in indexes], afresh=True)
    if state.followed:
        session.collector.follow(state)
    return count


def again(batch: BatchRef) -> tuple[int, str]:
    """Runs what failed again; answers how many, and what to say where the notebook's function is another one by now."""
    return retry(batch, None, None, {}, warn=False), changed(batch)


def _take_in(batch: BatchRef, seen: list[tuple[int, int]], count: int, queue: str | None) -> None:
    """Takes in that `count` of these jobs run again, for all handles of this session on the batch."""
    collector, known, moved = batch.session.collector, count == len(seen), queue if count else None
    _withdrawn(batch.state, [index for index, _ in seen], moved, known=known)
    for state in collector.known(batch.id) if count else ():
        if state is batch.state or state.gone:
            continue
        ended = [
            index for index, attempt in seen if index in state.outcomes and state.outcomes.attempt(index) == attempt
        ]
        _withdrawn(state, ended, moved, known=known)
        if state.followed:
            collector.follow(state)


def _withdrawn(state: BatchState, indexes: list[int], queue: str | None, *, known: bool) -> None:
    """Takes in that these jobs run again, or some of them: which, is `known` only of all."""
    with state.changed:
        state.reopen()
        if queue is not None:
            state.move(queue)
        if known or not state.followed:
            # The log says so too, but `job.wait()` right after this must not find the old outcome.
            before, tally = Counter(state.outcomes.state(index) for index in indexes), state.tally
            for index in indexes:
                state.withdraw(index)
            if known and state.tally is tally:  # else it has counted these itself
                _moved(state, before)


def _moved(state: BatchState, before: Counter[State | None]) -> None:
    """Counts jobs that ran to these ends as queued, until the store tells more."""
    tally = state.tally
    counts = {str(each): max(0, getattr(tally, each) - number) for each, number in before.items() if each}
    left = tally.n - sum(counts.get(str(each), getattr(tally, each)) for each in State if each is not State.QUEUED)
    state.count(msgspec.structs.replace(tally, queued=max(0, left), **counts))


def idle(batch: BatchRef) -> str:
    """What to do where no job of a batch has failed."""
    canceled = batch.tally.canceled
    if not canceled:
        return f"no job of {batch.id} has failed ({batch.tally})."
    return f"no job of {batch.id} has failed, {canceled:,} were canceled. {results.canceled_again(batch)} runs them."


def _refuse_running(batch: BatchRef, func: Callable[..., Any] | str | None, queue: str | None) -> None:
    """Raises BadInput where a change is of the whole batch, and jobs of it still run."""
    what = "func" if func is not None else "queue" if queue not in {None, batch.queue} else ""
    if what and not batch.inline and not _whole_ended(batch):
        why = f"{batch.id} is still running ({batch.tally}), and running jobs cannot change"
        raise BadInput(message=f"retry({what}=...) needs a batch that has ended: {why}. Call wait() or cancel() first.")


def _changes(
    batch: BatchRef, func: Callable[..., Any] | str | None, spec: Spec, queue: str | None
) -> tuple[Spec, dict[str, Any]]:
    """The spec of the run to come, and what the store must be told."""
    changes: dict[str, Any] = {}
    if func is not None:
        spec, changes = _replaced(batch, func, spec)
    if spec != batch.spec:
        changes["spec"] = batch.session.sealer.seal(wire.SPEC, batch.id, -1, encode(spec))
    return spec, changes | ({"queue": queue} if queue not in {None, batch.queue} else {})


def _whole_ended(batch: BatchRef) -> bool:
    """Whether all of the batch has ended, also what another call has added to it, or what was not heard of yet."""
    if batch.state.over and batch.state.rows is None:
        return True
    view = batch.session.ask(lambda broker: broker.view(batch.id))
    return view is None or view.done


def _replaced(batch: BatchRef, func: Callable[..., Any] | str, spec: Spec) -> tuple[Spec, dict[str, Any]]:
    """The spec with another function, and what the store must be told of it."""
    sealer = batch.session.sealer
    session = batch.session
    # A local worker's jobs have the environment as it is here: what was sent then may not be set any more.
    env = [name for name in spec.env if name in os.environ] if session.local else spec.env
    function = describe(func, env=env, inherited=session.environment(), salt=sealer.keyring.key, hooks=_hooks(batch))
    batch.function = function.call
    record = function.record
    changes: dict[str, Any] = {"key": record.key, "signer": sealer.keyring.current.hex()}
    changes |= {"python": record.python, "host": record.host}
    if spec.salt:
        record = msgspec.structs.replace(record, likeness=function_diff.fingerprint_of(function.call, str(func)))
    changes["function"] = sealer.seal(wire.FUNCTION, batch.id, -1, encode(record))
    env = tuple(sorted(record.env))
    return msgspec.structs.replace(spec, key=record.key, label=function.label, env=env), changes


def _hooks(batch: BatchRef) -> dict[str, Hook]:
    """The callbacks of a batch, which go with its new function too."""
    if not batch.spec.hooks:
        return {}
    sealed = batch.session.ask(lambda broker: broker.function(batch.id))
    if sealed is None:
        raise Expired(what=batch.id, ttl="some time")
    payload = batch.session.sealer.unseal(wire.FUNCTION, batch.id, -1, sealed)
    return decode(FunctionRecord, payload, f"The function of {batch.id}").hooks


def limited(spec: Spec, limits: dict[str, Any]) -> tuple[Spec, str | None]:
    """`spec` with other limits, and the queue to move to, if there is one; all checked."""
    strange = sorted(set(limits) - set(LIMITS))
    if strange:
        raise BadOption(message=f"retry() has no option {strange[0]!r}; its options are: {', '.join(LIMITS)}.")
    checked = Options().replaced(**limits)
    changes = {name: getattr(checked, name) for name in limits}
    queue = changes.pop("queue", None)
    if "spill" in changes:
        changes["spill"] = changes["spill"] or ""
    return msgspec.structs.replace(spec, **changes), queue


def chosen(batch: BatchRef, rows: Any) -> list[int]:
    """The positions that `rows` names, each once, in order. All of them must have ended. Raises BadInput."""
    state = batch.state
    if rows is None:
        return [job.index for job in refresh.failed(batch)]
    if dataframes.is_frame(rows):
        if "job_id" not in rows.columns:
            raise BadInput(message="These rows have no column job_id: take them from to_frame() of this batch.")
        rows = list(rows["job_id"])
    elif dataframes.is_series(rows) and "job_id" in rows.index:
        rows = [rows["job_id"]]  # one row of a frame
    elif isinstance(rows, int | str | JobRef):
        rows = [rows]
    if not isinstance(rows, Iterable):
        raise BadInput(message=f"rows={brief(rows)} must name rows: positions, Jobs, job ids, or rows of to_frame().")
    found = sorted({_position(batch, row) for row in rows})
    if not state.followed:
        refresh.look([JobRef(batch, index) for index in found], canceled=True)
    running = [index for index in found if index not in state.outcomes]
    if running:
        first = JobRef(batch, running[0]).id
        raise BadInput(message=f"{first} has not ended yet; retry it when it has, or cancel() it first.")
    return found


def _position(batch: BatchRef, row: Any) -> int:
    if isinstance(row, JobRef):
        row = row.id
    if isinstance(row, str):
        owner, _, digits = row.rpartition(":")
        if batch.single and row == batch.id:
            return 0
        if owner != batch.id or not digits.isdecimal():
            raise BadInput(message=f"{row!r} is no job of {batch.id}: its rows are named by its own job ids.")
        if not batch.state.holds(int(digits)):
            raise BadInput(message=f"{row!r} is not among the {len(batch):,} jobs of this call.")
        return int(digits)
    try:
        position = int(row.__index__())
    except AttributeError:
        raise BadInput(message=f"{row!r} names no row: give positions, Jobs, job ids, or rows of to_frame().") from None
    if isinstance(row, bool) or not -len(batch) <= position < len(batch):
        raise BadInput(message=f"There is no row {row!r} in {batch.id}, which has {len(batch):,}.")
    return batch.indexes[position % len(batch)]


def changed(batch: BatchRef) -> str:
    """What to say where the notebook's function is another one by now than the batch's; empty if it is not."""
    old = batch.function
    if not isinstance(old, FunctionType) or old.__module__ != "__main__":
        return ""
    new = getattr(sys.modules["__main__"], old.__name__, None)
    if not isinstance(new, FunctionType) or new is old or fingerprint.same_code(old, new):
        return ""
    return (
        f"{old.__name__} has changed since {batch.id} was submitted; this retry runs the old one. "
        f"To run the new one: retry(func={old.__name__})."
    )
