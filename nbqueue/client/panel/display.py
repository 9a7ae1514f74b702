"""What shows a batch: a panel in a notebook, rich's bar in a terminal, nothing where no one looks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nbqueue.client.panel import previous_run
from nbqueue.client.panel.panel import Panel
from nbqueue.client.panel.rate import line, pace_of
from nbqueue.client.panel.widget import Retry
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.kernel import cell, shell

TITLE, WORDS = 24, 68  # characters of a batch's name in a terminal, and of the words that have the precedence
SHARED_FROM = 4  # the batch of a cell that begins the shared panel


# ---------------------------------------------------------------- the notebook


_cells: dict[int, tuple[int, Panel | None]] = {}  # execution -> (batches shown, the shared panel)


def announce(batch: BatchRef, retry: Retry) -> None:
    """Shows a batch that was just submitted: a panel of its own, or a place in the cell's shared one."""
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
    """A fresh view of a batch, in the cell that runs."""
    Panel(batch, retry)


# ---------------------------------------------------------------- the terminal


@contextmanager
def in_terminal(batch: BatchRef) -> Iterator[Callable[[], None]]:
    """While it lasts, a bar moves in the terminal; yields what draws it anew. Nothing where stdout is no terminal."""
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
        pace = pace_of(batch.state)

        def show() -> None:
            tally, n = batch.tally, len(batch)
            pace.see(tally.over, ended=batch.state.settled)
            bar.update(task, total=max(1, n), completed=tally.over, words=line(tally, n, pace.eta(n - tally.over)))

        show()
        try:
            yield show
        finally:
            show()


def _nothing() -> None:
    """Draws nothing."""
