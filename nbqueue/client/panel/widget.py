"""The live widget of a panel: bar, buttons, and failure groups that open on a click.

Clicks are handled on threads, so that the kernel is not blocked; errors are shown in the widget.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from nbqueue.checks import counted
from nbqueue.client.panel import html, job_details, model
from nbqueue.client.panel.failures import FailureGroup, FailureGroups, Member
from nbqueue.client.panel.model import FailureLine, PanelModel
from nbqueue.client.session.batch_ref import BatchRef

MAX_WIDGETS = 50  # widgets that a kernel keeps: more would make every reload of the page slower
WIDGET = "application/vnd.jupyter.widget-view+json"

_STYLE = (
    f"<style>.nbq-controls{{{html.PAIR};padding:3px 6px;border-radius:4px}}"
    # JupyterLab's margin at the right of HTML: the bar does not jump when the saved form replaces the widget.
    ".jp-OutputArea-output .nbq-controls{margin-right:20px}"
    ".nbq-controls .jupyter-button{height:auto;min-height:26px;line-height:1.6;padding:1px 10px}"
    ".nbq-controls .jupyter-button:focus-visible{outline:2px solid var(--jp-brand-color1,#1976d2);outline-offset:1px}"
    ".nbq-controls .nbq-kind{text-align:left;white-space:normal;overflow-wrap:anywhere;"
    "border-left:3px solid var(--jp-error-color1,#d32f2f)}"
    ".nbq-controls .widget-html-content{line-height:normal}</style>"
)


Retry = Callable[
    [BatchRef], tuple[int, str]
]  # retries the failed jobs of a batch: their number, and a note for the user


class PanelActions:
    """The buttons' actions on all batches of one panel.

    A widget lives as long as its page; `clear` releases the batches before.
    """

    def __init__(self, batches: list[BatchRef], groups: FailureGroups, retry: Retry) -> None:
        self._retry = retry
        self.set(batches, groups)

    def set(self, batches: list[BatchRef], groups: FailureGroups) -> None:
        """Sets the batches to act on."""
        self._batches, self._groups = batches, groups

    def clear(self) -> None:
        """Releases the batches."""
        self._batches, self._groups = [], FailureGroups(str)

    def cancel(self) -> str:
        """Cancels all jobs that have not ended."""
        count = sum(batch.cancel() for batch in list(self._batches) if not model.ended(batch.state))
        return f"{count:,} canceled."

    def cancel_earlier(self) -> str:
        """Cancels the running batches of the cell's previous run."""
        before = {one.id: one for batch in list(self._batches) for one in batch.earlier if not model.ended(one.state)}
        count = sum(one.cancel() for one in before.values())
        return f"{count:,} canceled of {', '.join(before) or 'the earlier batches'}."

    def retry(self) -> str:
        """Retries the failed jobs; says so if the notebook's function has changed."""
        count, notes = 0, []
        for batch in list(self._batches):
            if batch.state.tally.failed and not batch.state.gone:
                retried, note = self._retry(batch)
                count += retried
                notes.append(note)
        return " ".join([f"{count:,} retried.", *dict.fromkeys(filter(None, notes))])

    def batch_of(self, member: Member) -> BatchRef:
        """The batch of a failed job."""
        return self._groups.batch(member)


class PanelWidget:
    """The widgets of one panel; their CSS class contains `ident`, for the saved form."""

    def __init__(self, ident: str, actions: PanelActions) -> None:
        import ipywidgets

        self.actions = actions
        self._asking = False
        self._view: PanelModel | None = None
        self._lock = threading.RLock()
        self._working = False  # on a click; the buttons stay enabled, because disabled ones lose the keyboard focus
        self._rows: list[FailureRow] = []
        self._head, self._lines = ipywidgets.HTML(), ipywidgets.HTML()
        self._head.add_class("nbq-head")
        self._lines.add_class("nbq-head")
        self._cancel = _button("Cancel", self._ask, "Cancels all jobs that have not ended; asks first")
        self._yes = _button("Yes, cancel", self._confirmed, "Cancels all jobs that have not ended", "danger")
        self._no = _button("Keep running", self._declined, "Cancels nothing")
        self._retry = _button(
            "Retry failed", self._retry_failed, "Runs the failed jobs again; results of finished jobs are kept"
        )
        self._before = _button(
            "Cancel the earlier batch", self._cancel_earlier, "Cancels the batches of this cell's previous run"
        )
        self._note, self._more = ipywidgets.HTML(), ipywidgets.HTML()
        self._kinds = ipywidgets.VBox()
        self._buttons = ipywidgets.HBox([self._cancel, self._yes, self._no, self._retry, self._before])
        parts = [ipywidgets.HTML(_STYLE), self._head, self._lines, self._buttons, self._note, self._kinds, self._more]
        self.box = ipywidgets.VBox(parts, layout={"max_width": "872px"})
        self.box.add_class(f"nbq-live-{ident}")
        self.box.add_class("nbq-controls")
        _register(self)

    def bundle(self) -> dict[str, Any]:
        """The widget for `display`. A frontend without widgets, or an untrusted notebook, shows nothing."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {WIDGET: view, "text/html": "", "text/plain": ""}

    def close(self) -> None:
        """Removes the widget from every frontend."""
        self.actions.clear()
        for row in self._rows:
            row.close()
        _close(self.box)

    # ------------------------------------------------------------ showing

    def show(self, view: PanelModel) -> None:
        """Shows `view`; only changes are sent to the frontend."""
        with self._lock:
            self._view = view
            self._head.value, self._lines.value = html.top(view), html.lines(view)
            self._arrange()
            self._list(view.failures)
            self._more.value = html.message(view.more) if view.more else ""

    def _list(self, failures: Sequence[FailureLine]) -> None:
        """Assigns groups to rows. Rows keep their place, focus and open state; rows without a group are hidden."""
        rows = {row.group: row for row in self._rows}
        listed = {each.group for each in failures}
        for row in self._rows:
            if row.group is not None and row.group not in listed and not (row.open and row.group.members):
                row.leave()
        free = [row for row in self._rows if row.group is None]
        for each in failures:
            row = rows.get(each.group) or (free.pop(0) if free else self._new())
            row.take(each)

    def _new(self) -> FailureRow:
        self._rows.append(FailureRow(self.actions, self._lock))
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
        _display(self._no, on=self._asking)
        _display(self._before, on=bool(view.earlier) and not self._asking)
        _display(self._retry, on=bool(view.retry) and not self._asking)

    # ------------------------------------------------------------ clicks

    def _ask(self) -> None:
        self._set_asking(asking=True)
        self._no.focus()

    def _declined(self) -> None:
        self._set_asking(asking=False)
        self._cancel.focus()

    def _set_asking(self, *, asking: bool) -> None:
        with self._lock:
            self._asking = asking
            self._note.value = ""
            self._arrange()

    def _confirmed(self) -> None:
        self._declined()
        self._work(self.actions.cancel, "Canceling ...")

    def _retry_failed(self) -> None:
        self._work(self.actions.retry, "Retrying ...")

    def _cancel_earlier(self) -> None:
        self._work(self.actions.cancel_earlier, "Canceling the earlier batch ...")

    def _work(self, act: Callable[[], str], words: str) -> None:
        if self._working:
            return
        self._working, self._note.value = True, html.message(words)

        def run() -> None:
            try:
                text = html.message(act())
            except Exception as why:  # noqa: BLE001 - a thread has no caller: the widget shows the error
                text = html.message(f"{type(why).__name__}: {why}", wrong=True)
            self._working, self._note.value = False, text

        _in_thread(run)


class FailureRow:
    """One failure group: a button that opens one of its jobs. `group` is None while the row is hidden."""

    def __init__(self, actions: PanelActions, lock: threading.RLock) -> None:
        import ipywidgets

        self._lock = lock  # the panel's: clicks and updates come from different threads
        self.group: FailureGroup | None = None
        self.open = False
        self._actions, self._text, self._position = actions, "", 0
        self._show_arguments = False
        self._button = _button("", self._toggle, "Shows or hides one of these jobs")
        self._button.layout = {"width": "auto"}
        self._button.add_class("nbq-kind")
        self._details = ipywidgets.HTML()
        self._arguments = _button("Show its arguments", self._ask, "Unpickles and shows the arguments of this job")
        self._next = _button("Next job", self._further, "Shows another failed job of this group")
        below = ipywidgets.HBox([self._arguments, self._next], layout={"margin": "0 0 8px"})
        self._body = ipywidgets.VBox([self._details, below])
        self.box = ipywidgets.VBox([self._button])

    def take(self, each: FailureLine) -> None:
        """Shows a group, with its present count and text."""
        if self.group is not each.group:
            self.group, self._position, self._show_arguments = each.group, 0, False
            _display(self.box, on=True)
        self._text = each.text
        self._name()
        _display(self._next, on=each.size > 1)

    def leave(self) -> None:
        """Hides the row until it gets another group."""
        self.group, self.open = None, False
        _display(self.box, on=False)
        self._fold()

    def _name(self) -> None:
        self._button.description = f"{'▾' if self.open else '▸'} {self._text}"

    def _fold(self) -> None:
        self._name()
        self.box.children = [self._button, self._body] if self.open else [self._button]
        self._details.value = ""

    def close(self) -> None:
        """Removes the row."""
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
            self._position += 1
            self._show_arguments = False
            self._fill()

    def _ask(self) -> None:
        with self._lock:
            self._show_arguments = not self._show_arguments
            self._fill()

    def _fill(self) -> None:
        self._arguments.description = (
            f"{'Hide' if self._show_arguments else 'Show'} its arguments"  # a new button would lose the focus
        )
        group, position, show_arguments = self.group, self._position, self._show_arguments

        def run() -> None:
            try:
                text = self._read(group, position, show_arguments=show_arguments)
            except Exception as why:  # noqa: BLE001 - a thread has no caller: the widget shows the error
                text = html.message(f"{type(why).__name__}: {why}", wrong=True)
            with self._lock:
                if (group, position, show_arguments) == (self.group, self._position, self._show_arguments):
                    self._details.value = text

        _in_thread(run)

    def _read(self, group: FailureGroup | None, position: int, *, show_arguments: bool) -> str:
        member = None if group is None else group.member(position)
        if member is None:
            return html.message("This job was retried.")
        batch, index = self._actions.batch_of(member), member[1]
        details = job_details.details_of(batch, index, log=True)
        if details is None:
            return html.message("This job was retried.")
        return html.job_html(details, job_details.arguments(batch, index) if show_arguments else None)


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


def _in_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="nbqueue click", daemon=True).start()


_widgets: deque[PanelWidget] = deque()


def _register(widget: PanelWidget) -> None:
    """Keeps a panel's widget after the end, for a reloaded page; closes the oldest ones."""
    _widgets.append(widget)
    while len(_widgets) > MAX_WIDGETS:
        _widgets.popleft().close()
