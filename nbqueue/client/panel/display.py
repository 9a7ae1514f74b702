"""Choosing how a batch is shown: a panel in a notebook, rich's progress bar in a terminal, else nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nbqueue.client.panel import previous_run
from nbqueue.client.panel.panel import Panel
from nbqueue.client.panel.rate import line, rate_of
from nbqueue.client.panel.widget import Retry
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.kernel import cell, shell

TITLE, WORDS = 24, 68  # characters of a batch's name in a terminal, and of the text beside it, which goes first
SHARED_FROM = 4  # from this batch of a cell on, batches share one panel


# ---------------------------------------------------------------- the notebook


_cells: dict[int, tuple[int, Panel | None]] = {}  # execution -> (batches shown, the shared panel)


def announce(batch: BatchRef, retry: Retry) -> None:
    """Shows a batch that was just submitted, in a panel of its own or in the cell's shared panel."""
    number = cell()
    if number is None:
        return
    previous_run.note(batch)
    count, shared = _cells.get(number, (0, None))
    count += 1
    if count < SHARED_FROM:
        Panel(batch, retry)
    elif shared is None:
        shared = Panel(batch, retry)
    else:
        shared.add(batch)
    _cells.clear()
    _cells[number] = count, shared


def view(batch: BatchRef, retry: Retry) -> None:
    """Shows a new panel of a batch in the running cell."""
    Panel(batch, retry)


# ---------------------------------------------------------------- the terminal


@contextmanager
def in_terminal(batch: BatchRef) -> Iterator[Callable[[], None]]:
    """Shows a progress bar while the block runs, if stdout is a terminal; yields the function that redraws it."""
    if shell() is not None or not batch.visible or not sys.stdout.isatty():
        yield _nothing
        return
    from rich import progress as rich
    from rich.table import Column

    width = min(TITLE, max(12, shutil.get_terminal_size().columns - WORDS))
    title = rich.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=width))
    words = rich.TextColumn("{task.fields[words]}", markup=False)
    with rich.Progress(title, rich.BarColumn(), words) as bar:
        task = bar.add_task(batch.name or batch.id, total=max(1, len(batch)), words="")
        rate = rate_of(batch.state)

        def show() -> None:
            tally, n = batch.tally, len(batch)
            rate.see(tally.over, ended=batch.state.settled)
            bar.update(task, total=max(1, n), completed=tally.over, words=line(tally, n, rate.eta(n - tally.over)))

        show()
        try:
            yield show
        finally:
            show()


def _nothing() -> None:
    """Draws nothing."""
