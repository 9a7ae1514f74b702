"""Bars: an ipywidgets bar in a notebook, rich's in a terminal, nothing where no one looks.

A notebook's bar moves from the collector's thread and ends as static HTML, so that a saved notebook shows it. Every
text of the user's is escaped.
"""

from __future__ import annotations

import html
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nbqueue.model import Tally

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch
    from nbqueue.client.watch import Watch

SHARED_FROM = 4  # the batch of a cell that begins the shared panel

_log = logging.getLogger(__name__)


def shell() -> Any:
    """IPython's shell in a Jupyter kernel, else None. IPython is not imported for the question."""
    module = sys.modules.get("IPython")
    found = module.get_ipython() if module is not None else None
    return found if getattr(found, "kernel", None) is not None else None


def cell() -> int | None:
    """The number of the running execution; None outside of notebooks."""
    found = shell()
    return None if found is None else int(found.execution_count)


def wanted(batch: Batch[Any], progress: bool | None) -> bool:
    """Whether a batch is to be shown: as its option says, or the setting."""
    chosen = batch.session.settings.progress if progress is None else progress
    return chosen and not batch.inline


# ---------------------------------------------------------------- words


class Pace:
    """How fast outcomes come in, since this bar began."""

    def __init__(self) -> None:
        self._begun: tuple[float, int] | None = None

    def eta(self, tally: Tally, n: int) -> float | None:
        """Seconds until all have ended, at the pace so far; None while nothing tells."""
        now = time.monotonic()
        if self._begun is None or tally.over < self._begun[1]:
            self._begun = now, tally.over
        begun, before = self._begun
        came = tally.over - before
        return (n - tally.over) * (now - begun) / came if came > 0 and now > begun else None


def line(tally: Tally, n: int, eta: float | None) -> str:
    """`120 of 1,000: 700 queued, 2 started, 118 finished, 2 failed, about 3 min left`."""
    waiting = f"{tally.deferred:,} deferred, " if tally.deferred else ""
    waiting += f"{tally.scheduled:,} scheduled, " if tally.scheduled else ""
    counts = f"{tally.queued:,} queued, {tally.started:,} started, {tally.finished:,} finished, {tally.failed:,} failed"
    canceled = f", {tally.canceled:,} canceled" if tally.canceled else ""
    left = f", about {span(eta)} left" if eta is not None and tally.over < n else ""
    return f"{tally.over:,} of {n:,}: {waiting}{counts}{canceled}{left}"


def span(seconds: float) -> str:
    """A duration in a word."""
    for size, word in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


def trouble(watch: Watch) -> str:
    """What is wrong with a batch, for its bar; empty if nothing."""
    if error := watch.fault or watch.error:
        return f"{type(error).__name__}: {error}"
    words = {"lost": "the server has forgotten this batch", "expired": "its results have expired"}
    return words.get(watch.gone, "") or ("the upload was cut short" if watch.cut else "")


# ---------------------------------------------------------------- the notebook


class Panel:
    """A bar in a notebook, for one batch or for several together."""

    def __init__(self, title: str) -> None:
        from IPython.display import display

        self._lock = threading.Lock()
        self._title, self._watches, self._pace = title, list["Watch"](), Pace()
        self.broken = False
        self._build()
        self._handle: Any = display(self._box, display_id=True)  # type: ignore[no-untyped-call]

    def _build(self) -> None:
        import ipywidgets

        self._bar = ipywidgets.IntProgress(min=0, max=1, layout={"width": "240px"})
        self._text = ipywidgets.HTML()
        self._box = ipywidgets.HBox([self._bar, self._text])
        self._last = ""
        self.closed = False

    def add(self, watch: Watch) -> None:
        """Shows one more batch; a bar that had come to its end moves again."""
        with self._lock:
            self._watches.append(watch)
            if self.closed:
                self._build()
                self._handle.update(self._box)
        watch.bars.append(self)
        self.update(watch)

    def update(self, watch: Watch) -> None:
        """Shows the present state; a bar that cannot be drawn is given up, and the work goes on."""
        with self._lock:
            try:
                if self.closed:
                    if self.broken or watch.settled or watch.gone or watch.fault:
                        return
                    self._build()  # a retry runs: the bar moves again
                    self._handle.update(self._box)
                self._draw()
            except Exception:  # noqa: BLE001 - widgets of many versions fail in many ways
                self.closed = self.broken = True
                _log.exception("The bar of %s cannot be drawn any more.", watch.batch)

    def _draw(self) -> None:
        n = sum(watch.n for watch in self._watches)
        tally = total([watch.tally for watch in self._watches])
        over = all(watch.settled or watch.gone or watch.fault for watch in self._watches)
        title = self._title if len(self._watches) == 1 else f"{self._title} and {len(self._watches) - 1} more"
        wrong = " ".join(word for watch in self._watches if (word := trouble(watch)))
        text = f"<b>{html.escape(title)}</b> {html.escape(line(tally, n, self._pace.eta(tally, n)))}"
        text += f" <span style='color:#b00'>{html.escape(wrong)}</span>" if wrong else ""
        if text != self._last:
            self._last = text
            self._bar.max, self._bar.value, self._text.value = max(n, 1), tally.over, text
            self._bar.bar_style = "danger" if tally.failed or wrong else "success" if over else "info"
        if over:
            self._freeze(tally, n, text)
            self.closed = True

    def _freeze(self, tally: Tally, n: int, text: str) -> None:
        from IPython.display import HTML

        # Frontends find the display by its id. From a thread the message belongs to the cell that runs now, and so
        # programs that only listen to that one (nbclient) hear it too.
        self._handle.update(HTML(static(tally, n, text)))  # type: ignore[no-untyped-call]
        self._box.close()


def static(tally: Tally, n: int, text: str) -> str:
    """A bar as HTML without a kernel: finished green, failed red, canceled grey; `text` is HTML already."""
    counts = {"#4a8": tally.finished, "#c33": tally.failed, "#999": tally.canceled}
    if not n:
        counts = {"#4a8": 1}
    style = "height:12px;display:inline-block;vertical-align:top;width:"
    parts = (f"<div style='background:{hue};{style}{count / max(n, 1):.2%}'></div>" for hue, count in counts.items())
    outer = "background:#ddd;width:240px;display:inline-block;vertical-align:middle;line-height:0"
    return f"<div><div style='{outer}'>{''.join(parts)}</div> {text}</div>"


def total(tallies: list[Tally]) -> Tally:
    """The sum of tallies."""
    return Tally(**{name: sum(getattr(t, name) for t in tallies) for name in Tally.__struct_fields__})


_cells: dict[int, tuple[int, Panel | None]] = {}  # execution -> (batches shown, the shared panel)


def announce(batch: Batch[Any]) -> None:
    """Shows a batch that was just submitted: a bar of its own, or a place in the cell's shared one."""
    number = cell()
    if number is None:
        return
    count, shared = _cells.get(number, (0, None))
    count += 1
    if count < SHARED_FROM:
        Panel(batch.name or batch.id).add(batch.watch)
    else:
        if shared is None:
            shared = Panel(batch.id)
        shared.add(batch.watch)
    _cells.clear()
    _cells[number] = count, shared


def view(batch: Batch[Any]) -> None:
    """A fresh view of a batch, wherever IPython displays."""
    if shell() is None:
        print(repr(batch))  # noqa: T201 - IPython in a terminal displays by printing
    else:
        Panel(batch.id).add(batch.watch)


# ---------------------------------------------------------------- the terminal


@contextmanager
def in_terminal(batch: Batch[Any]) -> Iterator[Callable[[], None]]:
    """While it lasts, a bar moves in the terminal; yields what draws it anew. Nothing where stdout is no terminal."""
    if shell() is not None or not batch.visible or not sys.stdout.isatty():
        yield _nothing
        return
    from rich import progress as rich

    words = rich.TextColumn("{task.fields[words]}", markup=False)
    with rich.Progress(rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), words) as bar:
        task = bar.add_task(batch.id, total=max(1, len(batch)), words="")
        pace = Pace()

        def show() -> None:
            tally, n = batch.tally, len(batch)
            bar.update(task, total=max(1, n), completed=tally.over, words=line(tally, n, pace.eta(tally, n)))

        show()
        try:
            yield show
        finally:
            show()


def _nothing() -> None:
    """Draws nothing."""
