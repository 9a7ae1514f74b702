"""A panel in a notebook: two outputs of one cell, of which one is seen.

The first is HTML and is what a saved notebook keeps: renewed now and then, and at the end. The second is the live
widget: it moves from a thread while other cells run, and comes back with a reloaded page as long as the kernel lives.
Where nobody sits at the notebook (papermill, nbconvert) there is only the first.
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
from nbqueue.client.panel.rate import RateEstimator, line, pace_of
from nbqueue.client.panel.widget import Acts, PanelWidget, Retry
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.kernel import attended, cell_of, number

if TYPE_CHECKING:
    from nbqueue.client.state.batch_state import BatchState

PERIOD = 0.2  # seconds between two updates at least
TICK = 1.0  # seconds after which times move, news or not
SAVE = 1.0, 60.0  # seconds between two renewals of the saved form: a 20th of the time that the batch has run, in these

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
        self._lookouts = defaultdict[tuple[int, str], WorkersPoller](WorkersPoller)  # by session and queue
        self._rounds = ProgressPoller()
        self._groups = FailureGroups(self._words)
        self._pace = pace_of(batch.state)
        self._dirty = True
        self._drawn = self._saved = 0.0
        self._live = False  # whether the second output shows the widget
        self._controls: Any = None
        self._first: Any = None  # handles of the two outputs
        self._second: Any = None
        self.closed = self.broken = False
        self.add(batch)

    def add(self, batch: BatchRef) -> None:
        """Shows one more batch; a panel that had come to its end moves again."""
        with self._lock:
            if self._batches:
                self._pace = RateEstimator(several=True) if len(self._batches) == 1 else self._pace
            self._batches.append(batch)
            self._groups.add(batch)
            if self._first is None:
                self._display()
            self.closed = self.broken
        batch.state.bars.append(self)
        self.update(batch.state)

    def update(self, state: BatchState) -> None:
        """Takes news of a batch, from any thread. The end is drawn at once, by the caller: it may be the cell's end."""
        if self.broken or (self.closed and model.ended(state)):
            return
        self._dirty = True
        if all(model.ended(batch.state) for batch in self._batches):
            self.draw()
        else:
            self.closed = False
            painter.keep(self)

    def tick(self) -> None:
        """Draws, if there is something new to see; called by the painter, every PERIOD."""
        if self._dirty or time.monotonic() - self._drawn >= TICK:
            with self._given_up():
                self._ask()
            self.draw()

    def _ask(self) -> None:
        """Who serves its batches, and what running jobs say."""
        queues: dict[tuple[int, str], list[BatchRef]] = {}
        for batch in list(self._batches):
            queues.setdefault((id(batch.session), batch.queue), []).append(batch)
        for key, batches in queues.items():
            self._lookouts[key].look(batches)
        self._rounds.look(self._batches)

    def draw(self) -> None:
        """Shows the present state; a panel that cannot be drawn is given up, and the work goes on."""
        with self._lock, self._given_up():
            self._draw()

    @contextlib.contextmanager
    def _given_up(self) -> Iterator[None]:
        """Gives the panel up where what is done within fails: neither the work nor other panels suffer by it."""
        try:
            yield
        except Exception:  # noqa: BLE001 - widgets of many versions fail in many ways
            self.closed = self.broken = True
            _log.exception("The panel of %s cannot be drawn any more.", self._batches[0].id)

    # ------------------------------------------------------------ drawing

    def _draw(self) -> None:
        self._dirty, self._drawn = False, time.monotonic()
        whole = self._groups.look()
        seen = self._look()
        while seen.ended and not whole:
            whole = self._groups.look()
            seen = self._look()
        if self.closed and seen.ended:
            return
        self.closed = seen.ended
        self._show(seen)
        pause = min(SAVE[1], max(SAVE[0], (seen.elapsed or 0.0) / 20))
        if seen.ended or time.monotonic() - self._saved >= pause:
            self._save(seen)

    def _look(self) -> PanelModel:
        serving = [lookout.found for lookout in self._lookouts.values() if lookout.found is not None]
        return model.look(self._batches, self._pace, self._groups, serving, self._rounds.going)

    def _show(self, seen: PanelModel) -> None:
        """The live widget, as long as there is something that it can do."""
        if self._second is None:
            return
        wanted = not seen.ended or seen.retry > 0
        if wanted:
            self._controls.acts.hold(self._batches, self._groups)
        if wanted or self._live:
            self._controls.show(seen)
        if wanted != self._live:
            self._live = wanted
            self._second.update(self._controls.bundle() if wanted else _EMPTY, raw=True)
        if not wanted:
            self._controls.acts.drop()

    def _save(self, seen: PanelModel) -> None:
        self._saved = time.monotonic()
        self._first.update(self._bundle(seen), raw=True)

    def _bundle(self, seen: PanelModel) -> dict[str, str]:
        examples, asof, again = {}, "", ""
        if seen.ended:
            examples = {place: told for place, each in enumerate(seen.failures) if (told := self._example(each.kind))}
        else:
            again = f"nbqueue.attach({self._batches[0].name or self._batches[0].id!r})"
            asof = f"Snapshot of {time.strftime('%d %b %Y, %H:%M')}. Current state: {again}"
        text = html.static(seen, examples, asof=asof, again=again)
        if self._live:
            text = html.beside(self._ident, text, final=seen.ended)
        return {"text/html": text, "text/plain": line(seen.tally, seen.n, seen.eta)}

    def _example(self, kind: Any) -> job_details.JobDetails | None:
        member = kind.member(0)
        return None if member is None else job_details.told(self._groups.batch(member), member[1])

    def _display(self) -> None:
        """Makes the outputs, in the cell that runs."""
        from IPython.display import display

        self._groups.look()
        seen = self._look()
        if not self._batches[0].inline and (not seen.ended or seen.retry) and attended():
            self._controls = PanelWidget(self._ident, Acts(self._batches, self._groups, self._retry))
            self._controls.show(seen)
            self._live = True
        self._first = display(self._bundle(seen), raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._saved = time.monotonic()
        if self._controls is not None:
            bundle = self._controls.bundle()
            self._second = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def _words(self, frame: Frame) -> str:
        return place_words(frame, cell_of, self._number)


class RenderThread:
    """One thread that draws all panels that move; it ends when none does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._panels: dict[Panel, None] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def keep(self, panel: Panel) -> None:
        """Draws `panel` from now on, until it is closed."""
        with self._lock:
            self._panels[panel] = None
            if (self._thread is None or not self._thread.is_alive()) and not self._over.is_set():
                self._thread = threading.Thread(target=self._run, name="nbqueue painter", daemon=True)
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


painter = RenderThread()
