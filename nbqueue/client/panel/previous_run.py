"""Batches of a cell's previous run: if they still run when the cell is run again, the new panel says so."""

from __future__ import annotations

import weakref
from typing import NamedTuple

from nbqueue.client.session import kernel
from nbqueue.client.session.batch_ref import BatchRef


class _Run(NamedTuple):
    """One execution of a cell: its number, its batches, and the running batches of the execution before."""

    number: int
    batches: list[weakref.ref[BatchRef]]
    before: list[weakref.ref[BatchRef]]


_runs: dict[str, _Run] = {}


def note(batch: BatchRef) -> None:
    """Records `batch` for the running cell, and sets its `earlier` to the running batches of the cell's last run."""
    number, origin = kernel.cell(), kernel.origin()
    if number is None or origin is None:
        return
    run = _runs.get(origin)
    if run is None or run.number != number:
        run = _runs[origin] = _Run(number, [], [] if run is None else [*run.batches, *run.before])
        run.before[:] = [each for each in run.before if _runs_still(each(), batch)]
    batch.earlier = [found for each in run.before if (found := each()) is not None and _runs_still(found, batch)]
    run.batches.append(weakref.ref(batch))


def _runs_still(earlier: BatchRef | None, batch: BatchRef) -> bool:
    return earlier is not None and earlier.id != batch.id and running(earlier)


def running(batch: BatchRef) -> bool:
    """Whether jobs of it may still run."""
    state = batch.state
    return not (state.settled or state.gone or state.fault)


def words(batches: list[BatchRef]) -> list[tuple[str, str]]:
    """(text, the command in it) for each batch."""
    found = []
    for batch in batches:
        command = f"nbqueue.attach({batch.id!r}).cancel()"
        text = (
            f"A batch of this cell's previous run is still running: {batch.id} ({batch.tally}). {command} cancels it."
        )
        found.append((text, command))
    return found
