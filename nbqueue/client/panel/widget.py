"""The live widget of a panel: its bar, buttons, and the kinds of failure, which open on a click.

Clicks are answered on threads of their own, so that the kernel goes on; what goes wrong is said in the widget.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nbqueue.checks import counted
from nbqueue.client.panel import html, job_details, model
from nbqueue.client.panel.failures import FailureGroup, FailureGroups, Member
from nbqueue.client.panel.model import Failures, PanelModel
from nbqueue.client.session.batch_ref import BatchRef

KEPT = 50  # widgets of panels that a kernel keeps: more would make every reload of the page slower
WIDGET = "application/vnd.jupyter.widget-view+json"

_STYLE = (
    f"<style>.nbq-controls{{{html.PAIR};padding:3px 6px;border-radius:4px}}"
    # JupyterLab keeps so much free at the right of HTML, as which the bar stays at the end: it does not jump then.
    ".jp-OutputArea-output .nbq-controls{margin-right:20px}"
    ".nbq-controls .jupyter-button{height:auto;min-height:26px;line-height:1.6;padding:1px 10px}"
    ".nbq-controls .jupyter-button:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:1px}"
    ".nbq-controls .nbq-kind{text-align:left;white-space:normal;overflow-wrap:anywhere;"
    "border-left:3px solid var(--jp-error-color1,#d32f2f)}"
    ".nbq-controls .widget-html-content{line-height:normal}</style>"
)


Retry = Callable[[BatchRef], tuple[int, str]]  # runs what failed again: how many, and what there is to say of it


class Acts:
    """The verbs for all batches of one panel.

    A widget lives until its page forgets it, so what it holds lives as long; `drop` lets the batches go.
    """

    def __init__(self, batches: list[BatchRef], groups: FailureGroups, retry: Retry) -> None:
        self._retry = retry
        self.hold(batches, groups)

    def hold(self, batches: list[BatchRef], groups: FailureGroups) -> None:
        """Acts on these from now on."""
        self._batches, self._groups = batches, groups

    def drop(self) -> None:
        """Acts on nothing from now on."""
        self._batches, self._groups = [], FailureGroups(str)

    def cancel(self) -> str:
        """Cancels all that has not ended."""
        count = sum(batch.cancel() for batch in list(self._batches) if not model.ended(batch.state))
        return f"{count:,} canceled."

    def cancel_earlier(self) -> str:
        """Cancels what the same cell submitted before."""
        before = {one.id: one for batch in list(self._batches) for one in batch.earlier if not model.ended(one.state)}
        count = sum(one.cancel() for one in before.values())
        return f"{count:,} canceled of {', '.join(before) or 'what was submitted before'}."

    def retry(self) -> str:
        """Runs what failed again; says so where the notebook's function is another one by now."""
        count, told = 0, []
        for batch in list(self._batches):
            if batch.state.tally.failed and not batch.state.gone:
                again, note = self._retry(batch)
                count += again
                told.append(note)
        return " ".join([f"{count:,} run again.", *dict.fromkeys(filter(None, told))])

    def batch_of(self, member: Member) -> BatchRef:
        """The batch of a failed job."""
        return self._groups.batch(member)


class PanelWidget:
    """The widgets of one panel, marked for the saved form beside them with `ident`."""

    def __init__(self, ident: str, acts: Acts) -> None:
        import ipywidgets

        self.acts = acts
        self._asking = False
        self._view: PanelModel | None = None
        self._lock = threading.RLock()
        self._working = False  # on a click; buttons are not disabled then: they would lose the keyboard's focus
        self._rows: list[FailureRow] = []
        self._head, self._lines = ipywidgets.HTML(), ipywidgets.HTML()
        self._head.add_class("nbq-head")
        self._lines.add_class("nbq-head")
        self._cancel = _button("Cancel", self._ask, "Cancels what has not ended; asks first")
        self._yes = _button("Yes, cancel", self._confirmed, "Cancels all that has not ended", "danger")
        self._keep = _button("Keep running", self._declined, "Cancels nothing")
        self._retry = _button("Retry failed", self._again, "Runs what failed again; what finished is kept")
        self._before = _button("Cancel the earlier batch", self._sweep, "Cancels what this cell submitted before")
        self._note, self._more = ipywidgets.HTML(), ipywidgets.HTML()
        self._kinds = ipywidgets.VBox()
        self._buttons = ipywidgets.HBox([self._cancel, self._yes, self._keep, self._retry, self._before])
        parts = [ipywidgets.HTML(_STYLE), self._head, self._lines, self._buttons, self._note, self._kinds, self._more]
        self.box = ipywidgets.VBox(parts, layout={"max_width": "872px"})
        self.box.add_class(f"nbq-live-{ident}")
        self.box.add_class("nbq-controls")
        _keep(self)

    def bundle(self) -> dict[str, Any]:
        """The widget for `display`. A frontend without widgets, or that does not trust them, shows nothing of it."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {WIDGET: view, "text/html": "", "text/plain": ""}

    def close(self) -> None:
        """Takes it away, in every frontend that shows it."""
        self.acts.drop()
        for row in self._rows:
            row.close()
        _close(self.box)

    # ------------------------------------------------------------ showing

    def show(self, view: PanelModel) -> None:
        """Shows `view`. What has not changed is not sent."""
        with self._lock:
            self._view = view
            self._head.value, self._lines.value = html.top(view), html.lines(view)
            self._arrange()
            self._list(view.failures)
            self._more.value = html.message(view.more) if view.more else ""

    def _list(self, failures: Sequence[Failures]) -> None:
        """Rows stay where they are, so that none loses the focus or closes; those without a kind are hidden."""
        rows = {row.kind: row for row in self._rows}
        listed = {each.kind for each in failures}
        for row in self._rows:
            if row.kind is not None and row.kind not in listed and not (row.open and row.kind.members):
                row.leave()
        free = [row for row in self._rows if row.kind is None]
        for each in failures:
            row = rows.get(each.kind) or (free.pop(0) if free else self._new())
            row.take(each)

    def _new(self) -> FailureRow:
        self._rows.append(FailureRow(self.acts, self._lock))
        self._kinds.children = [row.box for row in self._rows]
        return self._rows[-1]

    def _arrange(self) -> None:
        view = self._view
        if view is None:
            return
        self._asking = self._asking and not view.ended
        left = view.n - view.tally.over
        self._yes.description = f"Yes, cancel {counted(left, 'job')}"
        self._retry.description = f"Retry {view.retry:,} failed"
        _display(self._cancel, on=not view.ended and not self._asking)
        _display(self._yes, on=self._asking)
        _display(self._keep, on=self._asking)
        _display(self._before, on=bool(view.earlier) and not self._asking)
        _display(self._retry, on=bool(view.retry) and not self._asking)

    # ------------------------------------------------------------ clicks

    def _ask(self) -> None:
        self._turn(asking=True)
        self._keep.focus()

    def _declined(self) -> None:
        self._turn(asking=False)
        self._cancel.focus()

    def _turn(self, *, asking: bool) -> None:
        with self._lock:
            self._asking = asking
            self._note.value = ""
            self._arrange()

    def _confirmed(self) -> None:
        self._declined()
        self._work(self.acts.cancel, "Canceling ...")

    def _again(self) -> None:
        self._work(self.acts.retry, "Retrying ...")

    def _sweep(self) -> None:
        self._work(self.acts.cancel_earlier, "Canceling the earlier batch ...")

    def _work(self, act: Callable[[], str], words: str) -> None:
        if self._working:
            return
        self._working, self._note.value = True, html.message(words)

        def run() -> None:
            try:
                told = html.message(act())
            except Exception as why:  # noqa: BLE001 - a thread has no caller: whatever it is, the user reads it here
                told = html.message(f"{type(why).__name__}: {why}", wrong=True)
            self._working, self._note.value = False, told

        _aside(run)


class FailureRow:
    """One kind of failure: a button that opens one of its jobs. `kind` is None while it stands by, hidden."""

    def __init__(self, acts: Acts, lock: threading.RLock) -> None:
        import ipywidgets

        self._lock = lock  # the panel's: clicks come on one thread, news on another
        self.kind: FailureGroup | None = None
        self.open = False
        self._acts, self._text, self._place = acts, "", 0
        self._asked = False  # for the arguments of the job that is shown
        self._button = _button("", self._toggle, "Shows or hides one of these jobs")
        self._button.layout = {"width": "auto"}
        self._button.add_class("nbq-kind")
        self._told = ipywidgets.HTML()
        self._arguments = _button("Show its arguments", self._ask, "Unpickles and shows the arguments of this job")
        self._next = _button("Next job", self._further, "Shows another job that failed like this")
        below = ipywidgets.HBox([self._arguments, self._next], layout={"margin": "0 0 8px"})
        self._body = ipywidgets.VBox([self._told, below])
        self.box = ipywidgets.VBox([self._button])

    def take(self, each: Failures) -> None:
        """Shows a kind, with its present count and words."""
        if self.kind is not each.kind:
            self.kind, self._place, self._asked = each.kind, 0, False
            _display(self.box, on=True)
        self._text = each.text
        self._name()
        _display(self._next, on=each.size > 1)

    def leave(self) -> None:
        """Hides the row, until there is another kind for it."""
        self.kind, self.open = None, False
        _display(self.box, on=False)
        self._fold()

    def _name(self) -> None:
        self._button.description = f"{'▾' if self.open else '▸'} {self._text}"

    def _fold(self) -> None:
        self._name()
        self.box.children = [self._button, self._body] if self.open else [self._button]
        self._told.value = ""

    def close(self) -> None:
        """Takes it away."""
        _close(self.box)
        _close(self._body)

    def _toggle(self) -> None:
        with self._lock:
            self.open = not self.open
            self._fold()
            if self.open:
                self._fill()

    def _further(self) -> None:
        with self._lock:
            self._place += 1
            self._asked = False
            self._fill()

    def _ask(self) -> None:
        with self._lock:
            self._asked = not self._asked
            self._fill()

    def _fill(self) -> None:
        self._arguments.description = f"{'Hide' if self._asked else 'Show'} its arguments"  # the button keeps the focus
        kind, place, asked = self.kind, self._place, self._asked

        def run() -> None:
            try:
                text = self._read(kind, place, asked=asked)
            except Exception as why:  # noqa: BLE001 - a thread has no caller: whatever it is, the user reads it here
                text = html.message(f"{type(why).__name__}: {why}", wrong=True)
            with self._lock:
                if (kind, place, asked) == (self.kind, self._place, self._asked):
                    self._told.value = text

        _aside(run)

    def _read(self, kind: FailureGroup | None, place: int, *, asked: bool) -> str:
        member = None if kind is None else kind.member(place)
        if member is None:
            return html.message("It runs again.")
        batch, index = self._acts.batch_of(member), member[1]
        told = job_details.told(batch, index, log=True)
        if told is None:
            return html.message("It runs again.")
        return html.told(told, job_details.arguments(batch, index) if asked else None)


def _button(text: str, click: Callable[[], None], tooltip: str, style: str = "") -> Any:
    import ipywidgets

    made = ipywidgets.Button(description=text, tooltip=tooltip, button_style=style, layout={"width": "auto"})
    made.on_click(lambda _: click())
    return made


def _close(widget: Any) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


def _display(widget: Any, *, on: bool) -> None:
    widget.layout.display = None if on else "none"


def _aside(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="nbqueue click", daemon=True).start()


_kept: deque[PanelWidget] = deque()


def _keep(controls: PanelWidget) -> None:
    """A panel's widget lives on after the end, for a page that is loaded again; the oldest go."""
    _kept.append(controls)
    while len(_kept) > KEPT:
        _kept.popleft().close()
