"""A batch as a DataFrame: arguments, results, outcomes. Failed jobs and unreadable values are cells, not errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nbqueue import perform
from nbqueue.checks import size_text, warn
from nbqueue.client.frames import columns
from nbqueue.client.frames.columns import MISSING
from nbqueue.client.frames.rows import FrameInput, of_batch, of_jobs
from nbqueue.client.lookup.arguments import opened_call
from nbqueue.client.lookup.results import has_run, parents_of, text_of
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.errors import NbqueueError
from nbqueue.model import Outcome, Spilled, State, utc

if TYPE_CHECKING:
    import pandas as pd


PLAIN = ("status", "error", "runtime_s", "job_id")
_TIMES = ("queued_at", "started_at", "ended_at", "wait_s", "cpu_s")
META = (
    "cause",
    "error_type",
    "attempt",
    "code",
    "exit_code",
    *_TIMES,
    "max_rss_mb",
    "host",
    "worker",
    "meta",
    "progress",
)
_STATES = [str(state) for state in State]  # the same categories in every frame, so that frames can be concatenated
RESERVED = frozenset({"result", *PLAIN, *META})


def build(batch: BatchRef, *, meta: bool, args: bool) -> pd.DataFrame:
    """The frame of `batch` as it is now; arguments that are not in memory are read from the server or the spool."""
    return _build(of_batch(batch), meta=meta, args=args)


def of(jobs: Sequence[JobRef], *, meta: bool, args: bool) -> pd.DataFrame:
    """The frame of some jobs, in their order."""
    return _build(of_jobs(jobs), meta=meta, args=args)


def _build(rows: FrameInput, *, meta: bool, args: bool) -> pd.DataFrame:
    import pandas as pd

    cells = arguments_of(rows, whole=args)
    taken = frozenset(cells) | (RESERVED - {"result"})
    cells |= columns.results([value_of(outcome) for outcome in rows.outcomes], taken)
    made = {name: columns.column(values) for name, values in cells.items()}
    made["status"] = pd.Series(pd.Categorical([str(state) for state in rows.states()], categories=_STATES))
    made |= _plain(rows)
    if meta:
        made |= _meta(rows)
    elif _several_versions(rows):
        made["code"] = columns.text(_versions(rows))
    return pd.DataFrame(made, index=pd.RangeIndex(rows.n)).set_axis(index_of(rows), axis=0)


def warn_if_truncated(batch: BatchRef) -> None:
    """Warns if the upload was cut short."""
    if batch.state.cut:
        warn(f"The upload of {batch.id} was cut short: it holds only the {len(batch):,} items that arrived.")


# ---------------------------------------------------------------- outcomes


def value_of(outcome: Outcome | None) -> Any:
    """The value of a job, or MISSING; a text if it cannot be unpickled here."""
    if outcome is None or outcome.state is not State.FINISHED:
        return MISSING
    try:
        return perform.opened(outcome)
    except NbqueueError as why:  # affects one cell, not the frame
        return perform.cell(why)


def _plain(rows: FrameInput) -> dict[str, pd.Series[Any]]:
    errors = [
        None if o is None or o.state is State.FINISHED else text_of(o, parents_of(spec))
        for o, spec in zip(rows.outcomes, rows.specs, strict=True)
    ]
    ran = [float("nan") if o is None else o.runtime_us / 1e6 for o in map(_if_run, rows.outcomes)]
    return {"error": columns.text(errors), "runtime_s": _floats(ran), "job_id": columns.text(rows.ids)}


def _floats(values: Sequence[float | None]) -> pd.Series[Any]:
    import pandas as pd

    return pd.Series(values, dtype="float64")


def _if_run(outcome: Outcome | None) -> Outcome | None:
    """The outcome if the job ran to its end; None if it never started, or was canceled."""
    return outcome if outcome is not None and outcome.state is not State.CANCELED and has_run(outcome) else None


def _meta(rows: FrameInput) -> dict[str, pd.Series[Any]]:
    import pandas as pd

    outcomes, queued, notes = rows.outcomes, rows.queued(), rows.notes()
    ran = [_if_run(o) for o in outcomes]
    floats = {
        "wait_s": [_waited(o, us) for o, us in zip(ran, queued, strict=True)],
        "cpu_s": [None if o is None else o.cpu_us / 1e6 for o in ran],
        "max_rss_mb": [None if o is None or o.max_rss_kb is None else o.max_rss_kb / 1024 for o in ran],
    }
    return {
        "cause": columns.text([None if o is None or o.cause is None else str(o.cause) for o in outcomes]),
        "error_type": columns.text([None if o is None or o.failure is None else o.failure.type for o in outcomes]),
        "attempt": pd.Series([None if o is None else o.attempt for o in outcomes], dtype="Int64"),
        "code": columns.text(_versions(rows)),
        "exit_code": pd.Series([None if o is None else o.code for o in outcomes], dtype="Int64"),
        "queued_at": times(us or None for us in queued),
        "started_at": times(o.started_us if o is not None and o.started_us else None for o in ran),
        "ended_at": times(o.ended_us if o is not None and o.ended_us else None for o in outcomes),
        **{name: _floats(values) for name, values in floats.items()},
        "host": columns.text([None if o is None else o.host or None for o in outcomes]),
        "worker": columns.text([None if o is None else o.worker or None for o in outcomes]),
        "meta": columns.column([one.meta or None for one in notes]),
        "progress": columns.column([one.progress for one in notes]),
    }


def _versions(rows: FrameInput) -> list[str | None]:
    """The version of the function that made each row; None if the job did not run, or it was not recorded."""
    return [None if o is None else o.version or None for o in rows.outcomes]


def _several_versions(rows: FrameInput) -> bool:
    """Whether rows of one batch were made by several versions of its function, or not by its present one."""
    found, versions = dict[str, set[str]](), _versions(rows)
    for batch, _, positions in rows.groups:
        mine = found.setdefault(batch.id, {batch.spec.version})
        mine.update(version for position in positions if (version := versions[position]) is not None)
    return any(len(each - {""}) > 1 for each in found.values())


def _waited(outcome: Outcome | None, queued_us: int) -> float | None:
    return None if outcome is None else max(0.0, (outcome.started_us - queued_us) / 1e6)


def times(stamps: Iterable[int | None]) -> pd.Series[Any]:
    """Microseconds since the epoch as a column of times, in UTC."""
    import pandas as pd

    return pd.Series([None if us is None else utc(us) for us in stamps], dtype="datetime64[us, UTC]")


# ---------------------------------------------------------------- arguments


def arguments_of(rows: FrameInput, *, whole: bool) -> dict[str, list[Any]]:
    """The argument columns of a frame, by column name."""
    cells: dict[str, list[Any]] = {}
    for name, values in _arguments(rows, whole=whole).items():
        cells[columns.free(name, RESERVED | cells.keys(), "arg_")] = values
    return cells


def _arguments(rows: FrameInput, *, whole: bool) -> dict[str, list[Any]]:
    """The values of all jobs by parameter name: parameters in their order, then other arguments."""
    names = dict.fromkeys(name for spec in {id(spec): spec for spec in rows.specs}.values() for name in spec.columns)
    found: dict[str, list[Any]] = {name or f"arg_{position}": [] for position, name in enumerate(names or rows.empty)}
    used = set() if rows.n else set(found)
    for index, (spec, payload) in enumerate(zip(rows.specs, rows.payloads, strict=True)):
        spilled = None if whole else perform.spilled_in(payload)
        args, kwargs, _ = opened_call(payload) if spilled is None else ((_spilled_summary(spilled),), {}, None)
        positions = spec.columns
        if len(args) > len(positions):
            positions += tuple(f"arg_{position}" for position in range(len(positions), len(args)))
        small = whole or payload is None or len(payload) <= columns.SUMMARY
        for name, value in [*zip(positions, args, strict=False), *kwargs.items()]:
            if name not in used:
                used.add(name)
                found[name] = [MISSING] * rows.n
            found[name][index] = value if small else columns.summary(value)
    return {name: values for name, values in found.items() if name in used}


def _spilled_summary(spilled: Spilled) -> str:
    """The text that stands for a spilled argument, which is not read for it."""
    return columns.Summary(f"<{size_text(spilled.size)} in {spilled.root}>")


def index_of(rows: FrameInput) -> pd.Index[Any]:
    """The index of a frame: positions, or the labels that came with the items."""
    import pandas as pd

    return pd.RangeIndex(rows.n) if rows.labels is None else _index(rows.labels, rows.index_names)


def _index(labels: list[Any], names: tuple[str | None, ...]) -> pd.Index[Any]:
    import pandas as pd

    if len(names) > 1:
        return pd.MultiIndex.from_tuples(
            [label if isinstance(label, tuple) else (None,) * len(names) for label in labels], names=list(names)
        )
    found: pd.Index[Any] = pd.Index(labels, name=names[0] if names else None, tupleize_cols=False)
    return found
