import os
import signal
import time

import pytest
from helpers import wait_until

import nbqueue
from nbqueue.client.panel import model, widget
from nbqueue.client.panel.failures import FailureGroups
from nbqueue.client.panel.rate import rate_of
from nbqueue.client.panel.widget import PanelActions, PanelWidget
from nbqueue.client.submit import retry
from nbqueue.store import server as program


class Shown:
    """The widget of one batch, drawn when asked."""

    def __init__(self, batch):
        self.batch, self.groups = batch, FailureGroups(lambda frame: f"line {frame[1]}")
        self.groups.add(batch.ref)
        self.controls = PanelWidget("ab12", PanelActions([batch.ref], self.groups, retry.again))
        self.draw()

    def draw(self):
        self.groups.update()
        self.controls.show(model.snapshot([self.batch.ref], rate_of(self.batch.ref.state), self.groups, ()))
        return self

    @property
    def buttons(self):
        """The buttons that are seen."""
        row = self.controls._buttons.children
        return {button.description: button for button in row if button.layout.display != "none"}

    @property
    def note(self):
        return self.controls._note.value


def halves(x):
    if x % 2:
        raise ValueError(f"odd: {x}")
    return x // 2


def test_cancel_asks_first(session):
    shown = Shown(nbqueue.map(abs, range(5)))
    assert set(shown.buttons) == {"Cancel"}
    shown.buttons["Cancel"].click()
    assert set(shown.buttons) == {"Yes, cancel 5 jobs", "Keep running"}
    shown.buttons["Keep running"].click()
    assert set(shown.draw().buttons) == {"Cancel"}
    shown.buttons["Cancel"].click()
    shown.buttons["Yes, cancel 5 jobs"].click()
    wait_until(lambda: "5 canceled" in shown.note)
    wait_until(lambda: shown.batch.done)
    assert shown.draw().buttons == {}


def test_what_the_cell_left_running_has_a_button_of_its_own(session):
    before, batch = nbqueue.map(abs, range(5)), nbqueue.map(abs, range(2))
    batch.ref.earlier = [before.ref]
    shown = Shown(batch)
    assert set(shown.buttons) == {"Cancel", "Cancel the earlier batch"}
    assert f"still running: {before.id} (5 queued)" in shown.controls._lines.value
    shown.buttons["Cancel the earlier batch"].click()
    wait_until(lambda: f"5 canceled of {before.id}" in shown.note)
    wait_until(lambda: before.done)
    assert set(shown.draw().buttons) == {"Cancel"}
    assert "still running" not in shown.controls._lines.value
    assert not batch.tally.canceled
    batch.cancel()


def test_retry_runs_what_failed_and_says_that_the_function_has_changed(session, busy, monkeypatch):
    import __main__

    monkeypatch.setattr(halves, "__module__", "__main__")
    monkeypatch.setattr(__main__, "halves", lambda x: x, raising=False)
    shown = Shown(nbqueue.map(halves, range(6)))
    assert shown.batch.wait(20)
    shown.draw().buttons["Retry 3 failed"].click()
    wait_until(lambda: "3 retried. halves has changed since" in shown.note)
    wait_until(lambda: shown.batch.ref.state.outcomes.attempt(1) == 2 and shown.batch.done)


def test_a_kind_opens_shows_the_next_job_and_arguments_only_on_request(session, busy):
    shown = Shown(nbqueue.map(halves, range(6)))
    assert shown.batch.wait(20)
    shown.draw()
    (row,) = shown.controls._rows
    assert row._button.description.startswith("▸ 3x ValueError: odd: …")
    row._button.click()
    wait_until(lambda: "said something" in row._details.value)
    assert "odd: 1" in row._details.value
    assert "x = 1" not in row._details.value
    row._arguments.click()
    wait_until(lambda: "x = 1" in row._details.value)
    row._next.click()
    wait_until(lambda: "odd: 3" in row._details.value)
    assert "x = 3" not in row._details.value
    row._button.click()
    assert len(row.box.children) == 1


@pytest.fixture
def own_server(short_folder):
    """A server that a test may stop, and a session on it."""
    found = program.start(short_folder)
    session = nbqueue.connect(found.url)
    yield short_folder
    session.collector.stop()
    session.disconnect()


def test_a_click_blocks_nobody_and_what_goes_wrong_is_said_in_the_widget(own_server):
    shown = Shown(nbqueue.map(abs, range(5)))
    pid = program.status(own_server).pid
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    shown.controls._yes.click()
    assert time.monotonic() - begun < 4  # a request would wait for 5 s
    assert "Canceling" in shown.note
    shown.controls._yes.click()  # while it works, a second click does nothing
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "5 canceled" in shown.note)
    program.stop(own_server)
    again = Shown(shown.batch)
    shown.batch.ref.state.over = False
    again.controls._yes.click()
    wait_until(lambda: "NoServer: " in again.note, 30)


def test_a_widget_whose_batch_is_done_holds_it_no_more(session, busy):
    import gc
    import weakref

    shown = Shown(nbqueue.map(abs, range(3)))
    assert shown.batch.wait(20)
    shown.draw()
    controls, batch = shown.controls, weakref.ref(shown.batch)
    controls.actions.clear()
    del shown
    gc.collect()
    assert batch() is None
    controls.close()


def test_a_kernel_keeps_so_many_widgets_and_no_more(session):
    shown = [Shown(nbqueue.map(abs, [1], progress=False)) for _ in range(3)]
    while len(widget._widgets) < widget.MAX_WIDGETS:
        shown.append(Shown(shown[0].batch))
    first = widget._widgets[0]
    Shown(shown[0].batch)
    assert len(widget._widgets) == widget.MAX_WIDGETS
    assert first.box.comm is None
    shown[0].batch.cancel()


def grows(x):
    raise (KeyError if x else ValueError)("none")


def test_rows_stay_where_they_are_while_kinds_come_grow_and_go(session, busy):
    shown = Shown(nbqueue.map(grows, [0, 1, 1]))
    assert shown.batch.wait(20)
    shown.draw()
    first, second = shown.controls._rows
    second._button.click()
    wait_until(lambda: "KeyError" in second._details.value)
    boxes = shown.controls._kinds.children
    shown.groups._remove((0, 0))  # as when it is run again
    shown.draw()
    assert shown.controls._kinds.children == boxes
    assert first.box.layout.display == "none"
    assert second.open
    assert "KeyError" in second._details.value
    for index in (1, 2):
        shown.groups._remove((0, index))
    shown.draw()
    assert not second.open
    shown.groups._add_failure((0, 2), shown.batch.ref)
    shown.draw()
    assert shown.controls._kinds.children == boxes
    assert first._button.description.startswith("▸ 1x KeyError")
    assert (first.box.layout.display, second.box.layout.display) == (None, "none")
