"""What shows a batch: a panel in a notebook, rich's bar in a terminal, nothing where no one looks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nbqueue.client.panel import previous_run
from nbqueue.client.panel.rate import line, pace_of
from nbqueue.client.session.kernel import cell, shell

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch
    from nbqueue.client.panel.panel import Panel

__all__ = ["announce", "cell", "in_terminal", "presented", "shell", "view", "wanted"]

TITLE, WORDS = 24, 68  # characters of a batch's name in a terminal, and of the words that have the precedence
SHARED_FROM = 4  # the batch of a cell that begins the shared panel


def wanted(batch: Batch[Any], progress: bool | None) -> bool:
    """Whether a batch is to be shown: as its option says, or the setting."""
    chosen = batch.session.settings.progress if progress is None else progress
    return chosen and not batch.inline


# ---------------------------------------------------------------- the notebook


_cells: dict[int, tuple[int, Panel | None]] = {}  # execution -> (batches shown, the shared panel)


def announce(batch: Batch[Any]) -> None:
    """Shows a batch that was just submitted: a panel of its own, or a place in the cell's shared one."""
    number = cell()
    if number is None:
        return
    from nbqueue.client.panel.panel import Panel

    previous_run.note(batch)
    count, shared = _cells.get(number, (0, None))
    count += 1
    if count < SHARED_FROM:
        Panel(batch)
    elif shared is None:
        shared = Panel(batch)
    else:
        shared.add(batch)
    _cells.clear()
    _cells[number] = count, shared


def presented(batch: Batch[Any]) -> Batch[Any]:
    """The same batch, shown where it was attached, as one that was submitted."""
    batch.shown_in = cell()
    batch.visible = wanted(batch, None) and not batch.single
    if batch.visible:
        announce(batch)
    return batch


def view(batch: Batch[Any]) -> None:
    """A fresh view of a batch, wherever IPython displays."""
    if shell() is None:
        print(repr(batch))  # noqa: T201 - IPython in a terminal displays by printing
    else:
        from nbqueue.client.panel.panel import Panel

        Panel(batch)


# ---------------------------------------------------------------- the terminal


@contextmanager
def in_terminal(batch: Batch[Any]) -> Iterator[Callable[[], None]]:
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
        pace = pace_of(batch.watch)

        def show() -> None:
            tally, n = batch.tally, len(batch)
            pace.see(tally.over, ended=batch.done)
            bar.update(task, total=max(1, n), completed=tally.over, words=line(tally, n, pace.eta(n - tally.over)))

        show()
        try:
            yield show
        finally:
            show()


def _nothing() -> None:
    """Draws nothing."""
