"""A batch as a DataFrame: arguments, results, and how each job went. No failed job, and no cell, makes it raise."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from nbqueue import perform, wire
from nbqueue.client import columns
from nbqueue.client.columns import MISSING
from nbqueue.client.job import text_of
from nbqueue.errors import BadSignature, NbqueueError, SetupError
from nbqueue.model import Cause, Outcome, State, job_id, utc

if TYPE_CHECKING:
    import pandas as pd

    from nbqueue.client.batch import Batch

PART = 1_000

PLAIN = ("status", "error", "runtime_s", "job_id")
_TIMES = ("queued_at", "started_at", "ended_at", "wait_s", "cpu_s")
META = ("cause", "error_type", "attempt", "code", *_TIMES, "max_rss_mb", "host", "worker")
RESERVED = frozenset({"result", *PLAIN, *META})


def build(batch: Batch[Any], *, meta: bool, args: bool) -> pd.DataFrame:
    """The frame of what is known of `batch`; reads arguments from the store where they are not in memory."""
    import pandas as pd

    n = len(batch)
    outcomes = [_outcome(batch, index) for index in range(n)]
    given, labels = _arguments(batch, n, whole=args)
    cells: dict[str, list[Any]] = {}
    for name, values in given.items():
        cells[columns.free(name, RESERVED | cells.keys(), "arg_")] = values
    taken = frozenset(cells) | (RESERVED - {"result"})
    cells |= columns.results([_value(outcome) for outcome in outcomes], taken)
    made = {name: columns.column(values) for name, values in cells.items()}
    made |= {name: columns.column(values) for name, values in _plain(batch, outcomes).items()}
    if meta:
        made |= _meta(batch, outcomes)
    index = pd.RangeIndex(n) if labels is None else _index(labels, batch.spec.index_names)
    return pd.DataFrame(made, index=pd.RangeIndex(n)).set_axis(index, axis=0)


def warn_if_cut(batch: Batch[Any]) -> None:
    """Says that the upload was cut short, if it was."""
    if batch.watch.cut:
        warnings.warn(
            f"The upload of {batch.id} was cut short: it holds the {len(batch):,} items that arrived, and no more.",
            stacklevel=3,
        )


# ---------------------------------------------------------------- outcomes


def _outcome(batch: Batch[Any], index: int) -> Outcome | None:
    try:
        found = batch.watch.outcome(index, batch.session.sealer)
    except BadSignature as why:
        return Outcome(State.FAILED, Cause.SIGNATURE, 0, 0, 0, failure=perform.failure_of(why))
    if found is None and batch.watch.gone == "lost":
        return Outcome(State.FAILED, Cause.LOST_BY_SERVER, 0, 0, 0)
    return found


def _value(outcome: Outcome | None) -> Any:
    if outcome is None or outcome.value is None:
        return MISSING
    try:
        return wire.loads(outcome.value)
    except Exception as why:  # noqa: BLE001 - a class that is not here costs one cell, not the frame
        return f"<cannot be opened here: {perform.type_name(type(why))}: {perform.text_of(why)}>"


def _plain(batch: Batch[Any], outcomes: list[Outcome | None]) -> dict[str, list[Any]]:
    pending = _pending(batch, [index for index, outcome in enumerate(outcomes) if outcome is None])
    status = [str(pending[index] if o is None else o.state) for index, o in enumerate(outcomes)]
    ids = [batch.id] if batch.single else [job_id(batch.id, index) for index in range(len(outcomes))]
    return {
        "status": status,
        "error": [None if o is None or o.state is State.FINISHED else text_of(o) for o in outcomes],
        "runtime_s": [float("nan") if o is None else o.runtime_us / 1e6 for o in map(_ridden, outcomes)],
        "job_id": ids,
    }


def _ridden(outcome: Outcome | None) -> Outcome | None:
    """The outcome, if its job ran to an end; None if it never began, or was canceled."""
    if outcome is None or outcome.state is State.CANCELED or not (outcome.worker or outcome.runtime_us):
        return None
    return outcome


def _pending(batch: Batch[Any], indexes: list[int]) -> dict[int, State]:
    """Where the jobs are that have not ended; `queued` where the store cannot be asked."""
    found: dict[int, State] = dict.fromkeys(indexes, State.QUEUED)
    if batch.inline or batch.watch.gone:
        return found
    try:
        for start in range(0, len(indexes), PART):
            part = indexes[start : start + PART]
            states = batch.session.ask(lambda broker, part=part: broker.states(batch.id, part))  # type: ignore[misc]
            found |= {index: state for index, state in zip(part, states, strict=True) if state is not None}
    except SetupError as why:
        warnings.warn(f"What is queued and what runs is not known at the moment: {why}", stacklevel=4)
    return found


def _created(batch: Batch[Any]) -> int:
    """When it was submitted, in us; 0 where that is not known any more."""
    watch = batch.watch
    if not watch.created_us and not batch.inline:
        view = batch.session.ask(lambda broker: broker.view(batch.id))
        watch.created_us = 0 if view is None else view.created_us
    return watch.created_us


def _meta(batch: Batch[Any], outcomes: list[Outcome | None]) -> dict[str, pd.Series[Any]]:
    import pandas as pd

    queued = _created(batch)
    ran = [_ridden(o) for o in outcomes]
    lists: dict[str, list[Any]] = {
        "cause": [None if o is None or o.cause is None else str(o.cause) for o in outcomes],
        "error_type": [None if o is None or o.failure is None else o.failure.type for o in outcomes],
        "attempt": [None if o is None else o.attempt for o in outcomes],
        "code": [None if o is None else o.code for o in outcomes],
    }
    made = {name: columns.column(values) for name, values in lists.items()}
    made["attempt"], made["code"] = made["attempt"].astype("Int64"), made["code"].astype("Int64")
    times = {
        "queued_at": [queued or None] * len(outcomes),
        "started_at": [o.started_us if o is not None and o.started_us else None for o in ran],
        "ended_at": [o.ended_us if o is not None and o.ended_us else None for o in outcomes],
    }
    for name, values in times.items():
        made[name] = pd.Series([None if us is None else utc(us) for us in values], dtype="datetime64[us, UTC]")
    floats = {
        "wait_s": [None if o is None else max(0.0, (o.started_us - queued) / 1e6) for o in ran],
        "cpu_s": [None if o is None else o.cpu_us / 1e6 for o in ran],
        "max_rss_mb": [None if o is None or o.max_rss_kb is None else o.max_rss_kb / 1024 for o in ran],
    }
    made |= {name: pd.Series(values, dtype="float64") for name, values in floats.items()}
    for name in ("host", "worker"):
        made[name] = columns.column([getattr(o, name, None) or None for o in outcomes])
    return made


# ---------------------------------------------------------------- arguments


def _arguments(batch: Batch[Any], n: int, *, whole: bool) -> tuple[dict[str, list[Any]], list[Any] | None]:
    """(values by parameter name, index labels or None) of all jobs."""
    spec = batch.spec
    positions = [name or f"arg_{place}" for place, name in enumerate(spec.columns)]
    found: dict[str, list[Any]] = {name: [MISSING] * n for name in positions}
    used = set() if n else set(positions)
    labels: list[Any] = [None] * n
    for index, payload in enumerate(payloads(batch, n)):
        args, kwargs, label = _opened(payload)
        labels[index] = label
        while len(args) > len(positions):
            positions.append(f"arg_{len(positions)}")
        small = whole or payload is None or len(payload) <= columns.SUMMARY
        for name, value in [*zip(positions, args, strict=False), *kwargs.items()]:
            if name not in used:
                used.add(name)
                found.setdefault(name, [MISSING] * n)
            found[name][index] = value if small else columns.summary(value)
    return {name: values for name, values in found.items() if name in used}, labels if spec.labeled else None


def _opened(payload: bytes | None) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if payload is None:
        return (), {}, None
    try:
        return perform.unpack(payload)
    except Exception as why:  # noqa: BLE001 - a class that is not here costs one cell, not the frame
        return (f"<cannot be opened here: {perform.type_name(type(why))}: {perform.text_of(why)}>",), {}, None


def payloads(batch: Batch[Any], n: int) -> list[bytes | None]:
    """The arguments of all jobs as they were sent; None for those that neither memory nor the store has."""
    watch = batch.watch
    with watch.changed:
        found: list[bytes | None] = [*(watch.payloads or [])]
    del found[n:]
    if batch.inline or watch.gone:
        return found + [None] * (n - len(found))
    try:
        for start in range(len(found), n, PART):
            part = list(range(start, min(n, start + PART)))
            sealed = batch.session.ask(lambda broker, part=part: broker.arguments(batch.id, part))  # type: ignore[misc]
            found += [_unsealed(batch, index, blob) for index, blob in zip(part, sealed, strict=True)]
    except NbqueueError as why:
        warnings.warn(f"Some arguments are missing here: {why}", stacklevel=4)
    return found + [None] * (n - len(found))


def _unsealed(batch: Batch[Any], index: int, blob: bytes | None) -> bytes | None:
    if blob is None:
        return None
    try:
        return batch.session.sealer.unseal(wire.ARGUMENTS, batch.id, index, blob)
    except BadSignature:
        return None  # the job fails with cause `signature`, which its row says


def _index(labels: list[Any], names: tuple[str | None, ...]) -> pd.Index[Any]:
    import pandas as pd

    if len(names) > 1:
        return pd.MultiIndex.from_tuples(
            [label if isinstance(label, tuple) else (None,) * len(names) for label in labels], names=list(names)
        )
    found: pd.Index[Any] = pd.Index(labels, name=names[0] if names else None, tupleize_cols=False)
    return found
