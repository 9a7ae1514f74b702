"""A panel in a notebook: two outputs of one cell, of which one is visible.

The first is HTML, which the saved notebook keeps; it is updated now and then, and at the end. The second is the live
widget: a thread updates it while other cells run, and a reloaded page shows it again as long as the kernel lives.
Without a user at the notebook (papermill, nbconvert) there is only the first.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbqueue.client.panel import html, job_details, model
from nbqueue.client.panel.failures import FailureGroups, Frame, place_words
from nbqueue.client.panel.model import PanelModel
from nbqueue.client.panel.polling import ProgressPoller, WorkersPoller
from nbqueue.client.panel.rate import RateEstimator, line, rate_of
from nbqueue.client.panel.widget import PanelActions, PanelWidget, Retry
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.kernel import attended, cell_of, number

if TYPE_CHECKING:
    from nbqueue.client.state.batch_state import BatchState

PERIOD = 0.2  # seconds between two updates, at least
TICK = 1.0  # seconds between two updates without news, at most: elapsed times move
SAVE = 1.0, 60.0  # bounds of the seconds between two updates of the saved form: a 20th of the elapsed time

_EMPTY = {"text/html": "", "text/plain": ""}
_log = logging.getLogger(__name__)


class Panel:
    """Shows one batch, or several together."""

    def __init__(self, batch: BatchRef, retry: Retry) -> None:
        self._lock = threading.RLock()
        self._retry = retry
        self._ident = secrets.token_hex(4)
        self._number = number()
        self._batches: list[BatchRef] = []
        self._worker_pollers = defaultdict[tuple[int, str], WorkersPoller](WorkersPoller)  # by session and queue
        self._progress = ProgressPoller()
        self._groups = FailureGroups(self._words)
        self._rate = rate_of(batch.state)
        self._dirty = True
        self._drawn = self._saved = 0.0
        self._live = False  # whether the live form shows the widget
        self._widget: Any = None
        self._saved_form: Any = None  # handles of the two outputs
        self._live_form: Any = None
        self.closed = self.broken = False
        self.add(batch)

    def add(self, batch: BatchRef) -> None:
        """Shows one more batch; a panel that was closed is updated again."""
        with self._lock:
            if self._batches:
                self._rate = RateEstimator(several=True) if len(self._batches) == 1 else self._rate
            self._batches.append(batch)
            self._groups.add(batch)
            if self._saved_form is None:
                self._display()
            self.closed = self.broken
        batch.state.bars.append(self)
        self.update(batch.state)

    def update(self, state: BatchState) -> None:
        """Called when a batch has changed, from any thread. The end is drawn at once: the cell may end with it."""
        if self.broken or (self.closed and model.ended(state)):
            return
        self._dirty = True
        if all(model.ended(batch.state) for batch in self._batches):
            self.draw()
        else:
            self.closed = False
            render_thread.add(self)

    def tick(self) -> None:
        """Draws if something has changed; called by the render thread every PERIOD."""
        if self._dirty or time.monotonic() - self._drawn >= TICK:
            with self._errors_close():
                self._poll()
            self.draw()

    def _poll(self) -> None:
        """Asks for the workers of its batches, and for the progress of running jobs."""
        queues: dict[tuple[int, str], list[BatchRef]] = {}
        for batch in list(self._batches):
            queues.setdefault((id(batch.session), batch.queue), []).append(batch)
        for key, batches in queues.items():
            self._worker_pollers[key].poll(batches)
        self._progress.poll(self._batches)

    def draw(self) -> None:
        """Draws the present state; a panel that cannot be drawn is closed."""
        with self._lock, self._errors_close():
            self._draw()

    @contextlib.contextmanager
    def _errors_close(self) -> Iterator[None]:
        """Closes the panel if the block raises: neither jobs nor other panels are affected."""
        try:
            yield
        except Exception:  # noqa: BLE001 - widgets of many versions fail in many ways
            self.closed = self.broken = True
            _log.exception("The panel of %s cannot be drawn and was closed.", self._batches[0].id)

    # ------------------------------------------------------------ drawing

    def _draw(self) -> None:
        self._dirty, self._drawn = False, time.monotonic()
        complete = self._groups.update()
        seen = self._snapshot()
        while seen.ended and not complete:
            complete = self._groups.update()
            seen = self._snapshot()
        if self.closed and seen.ended:
            return
        self.closed = seen.ended
        self._show(seen)
        pause = min(SAVE[1], max(SAVE[0], (seen.elapsed or 0.0) / 20))
        if seen.ended or time.monotonic() - self._saved >= pause:
            self._save(seen)

    def _snapshot(self) -> PanelModel:
        workers = [poller.found for poller in self._worker_pollers.values() if poller.found is not None]
        return model.snapshot(self._batches, self._rate, self._groups, workers, self._progress.running)

    def _show(self, seen: PanelModel) -> None:
        """Updates the live widget; shows it as long as it has a button to offer."""
        if self._live_form is None:
            return
        wanted = not seen.ended or seen.retry > 0
        if wanted:
            self._widget.actions.set(self._batches, self._groups)
        if wanted or self._live:
            self._widget.show(seen)
        if wanted != self._live:
            self._live = wanted
            self._live_form.update(self._widget.bundle() if wanted else _EMPTY, raw=True)
        if not wanted:
            self._widget.actions.clear()

    def _save(self, seen: PanelModel) -> None:
        self._saved = time.monotonic()
        self._saved_form.update(self._bundle(seen), raw=True)

    def _bundle(self, seen: PanelModel) -> dict[str, str]:
        examples, asof, command = {}, "", ""
        if seen.ended:
            examples = {
                position: details
                for position, each in enumerate(seen.failures)
                if (details := self._example(each.group))
            }
        else:
            command = f"nbqueue.attach({self._batches[0].name or self._batches[0].id!r})"
            asof = f"Snapshot of {time.strftime('%d %b %Y, %H:%M')}. Current state: {command}"
        text = html.static(seen, examples, asof=asof, command=command)
        if self._live:
            text = html.beside(self._ident, text, final=seen.ended)
        return {"text/html": text, "text/plain": line(seen.tally, seen.n, seen.eta)}

    def _example(self, group: Any) -> job_details.JobDetails | None:
        member = group.member(0)
        return None if member is None else job_details.details_of(self._groups.batch(member), member[1])

    def _display(self) -> None:
        """Creates the outputs in the running cell."""
        from IPython.display import display

        self._groups.update()
        seen = self._snapshot()
        if not self._batches[0].inline and (not seen.ended or seen.retry) and attended():
            self._widget = PanelWidget(self._ident, PanelActions(self._batches, self._groups, self._retry))
            self._widget.show(seen)
            self._live = True
        self._saved_form = display(self._bundle(seen), raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._saved = time.monotonic()
        if self._widget is not None:
            bundle = self._widget.bundle()
            self._live_form = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def _words(self, frame: Frame) -> str:
        return place_words(frame, cell_of, self._number)


class RenderThread:
    """One thread that updates all open panels; it ends with the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._panels: dict[Panel, None] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def add(self, panel: Panel) -> None:
        """Updates `panel` from now on, until it is closed."""
        with self._lock:
            self._panels[panel] = None
            if (self._thread is None or not self._thread.is_alive()) and not self._over.is_set():
                self._thread = threading.Thread(target=self._run, name="nbqueue render_thread", daemon=True)
                self._thread.start()
                atexit.register(self._over.set)

    def _run(self) -> None:
        while not self._over.wait(PERIOD):
            for panel in list(self._panels):
                panel.tick()
            with self._lock:
                for panel in [panel for panel in self._panels if panel.closed]:
                    del self._panels[panel]
                if not self._panels:
                    self._thread = None
                    return


render_thread = RenderThread()
