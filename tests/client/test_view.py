import re
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
from helpers import wait_until
from hypothesis import given
from hypothesis import strategies as st

import nbqueue
from nbqueue.client.lookup.waiting import Advice
from nbqueue.client.panel import html, job_details, model, panel
from nbqueue.client.panel.failures import FailureGroup, FailureGroups
from nbqueue.client.panel.model import FailureLine, PanelModel
from nbqueue.client.panel.polling import SHOWN, ProgressPoller, QueueWorkers, WorkersPoller
from nbqueue.client.panel.rate import RateEstimator, rate_of
from nbqueue.client.state.batch_state import BatchState
from nbqueue.client.submit import retry
from nbqueue.model import Cause, Failure, Outcome, Spec, State, Tally

N = 100_000
OURS = {"div", "span", "b", "pre", "details", "summary", "code", "style"}


class Elements(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.names, self.text = [], set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def seen(batch, workers=()):
    groups = FailureGroups(lambda frame: f"line {frame[1]}")
    groups.add(batch.ref)
    groups.update()
    return model.snapshot([batch.ref], rate_of(batch.ref.state), groups, workers)


def fails(x):
    if x % 2:
        raise ValueError("<img src=x onerror=alert(1)>")


def test_a_view_tells_counts_pace_and_how_long_results_are_kept(session, hands):
    batch = nbqueue.map(fails, range(6), name="six")
    before = seen(batch)
    assert (before.title, before.about, before.n, before.ended) == ("six", batch.id, 6, False)
    hands.start()
    assert batch.wait(20)
    after = seen(batch)
    assert after.counts == [("finished", 3), ("failed", 3)]
    assert after.progress_text.startswith("6 of 6, took ")
    assert re.fullmatch(r"All results saved; also on the server until \d+ \w{3}( \d{4})?", after.retention)
    assert after.failures[0].text == f"3x ValueError: <img src=x onerror=alert(1)> - line {line()}"
    assert after.retry == 3
    batch.forget()


def line():
    return fails.__code__.co_firstlineno + 2


def test_a_queue_without_workers_says_what_to_run_and_then_who_serves(session):
    from hands import Hands

    batch = nbqueue.options(queue="gpu").map(abs, range(3))
    poller = WorkersPoller()

    def found():
        poller._next = 0.0
        poller.poll([batch.ref])
        return poller.found

    wait_until(lambda: found().advice)
    assert found().command.endswith("nbqueue worker --url " + session.server + " gpu")
    page = Elements(html.head(seen(batch, [found()])))
    assert "No live worker serves the queue 'gpu'" in page.text
    assert "code" in page.tags
    hands = Hands(session, ("gpu",), slots=3)
    assert (found().workers, found().slots) == (1, 3)
    hands.start()
    batch.wait(20)
    hands.stop()


def test_all_of_one_failed_job_is_told_and_arguments_only_on_request(session, hands):
    batch = nbqueue.map(fails, [1])
    hands.start()
    batch.wait(20)
    told = job_details.details_of(batch.ref, 0, log=True)
    assert told.job == f"{batch.id}:0"
    assert "peak memory 2 MB" in told.facts
    assert told.traceback.endswith("ValueError: <img src=x onerror=alert(1)>\n")
    assert told.log == "said something\n"
    assert job_details.arguments(batch.ref, 0) == "x = 1"
    batch.ref.state.arguments.sent = None  # as after attach: the store has them
    assert job_details.arguments(batch.ref, 0) == "x = 1"
    assert "x = 1" not in html.job_html(told)


def test_the_arguments_of_what_follows_another_batch_are_its_results(session, hands):
    first = nbqueue.map(abs, [-3])
    batch = first.then(fails)
    hands.work()
    hands.work()
    assert batch.wait(20)
    assert job_details.arguments(batch.ref, 0) == "x = 3"


def test_a_shared_panel_says_who_serves_until_the_last_batch_has_ended(session, hands):
    first, second = (nbqueue.map(abs, range(2)) for _ in range(2))
    first.cancel()
    assert first.wait(10)
    poller = WorkersPoller()
    poller.poll([first.ref, second.ref])
    assert (poller.found.workers, poller.found.advice) == (1, "")
    second.cancel()


def test_a_worker_whose_record_cannot_be_read_hides_no_other(session, hands):
    batch = nbqueue.map(abs, range(2))
    session.broker.join("odd", b"no record of ours", ("default",), 1)
    poller = WorkersPoller()
    poller.poll([batch.ref])
    assert poller.found.workers == 1
    assert " has key " in Advice(session, batch.ref.state).message()  # hands know none, and say so
    session.broker.leave("odd")
    batch.cancel()


class Nasty:
    def __repr__(self):
        raise RuntimeError("<b>no</b>")


def test_an_argument_that_cannot_be_shown_costs_nothing():
    batch = nbqueue.map(lambda thing: 1 / 0, [Nasty(), "<script>x</script>"], inline="collect")
    assert job_details.arguments(batch.ref, 0) == "thing = <cannot be shown: RuntimeError: <b>no</b>>"
    page = Elements(html.job_html(job_details.details_of(batch.ref, 1), job_details.arguments(batch.ref, 1)))
    assert "script" not in page.tags
    assert "<script>x</script>" in page.text


def test_a_column_name_of_the_users_becomes_no_html():
    frame = pd.DataFrame({"<script>alert(1)</script>": [1], "'><b>x": [2]})
    batch = nbqueue.map(lambda **row: 1 / 0, frame, inline="collect")
    page = Elements(html.job_html(job_details.details_of(batch.ref, 0), job_details.arguments(batch.ref, 0)))
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("b") == 1  # the job's
    assert "<script>alert(1)</script> = 1\n'><b>x = 2" in page.text
    shown = Elements(batch.to_frame()._repr_html_())
    assert "script" not in shown.tags
    assert "b" not in shown.tags


ANY = st.text(max_size=30) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        "'><img src=x onerror=alert(1)>",
        '" onmouseover="x',
        "</style><script>",
        "&lt;",
        "]]>",
    ]
)


@given(ANY, ANY, ANY, ANY, ANY)
def test_no_text_of_the_users_becomes_html(title, message, trouble, command, trace):
    kind = FailureGroup("KeyError", message, "line 3 of " + title)
    kind.members[0, 0] = None
    record = PanelModel(
        title=title,
        about=message,
        tally=Tally(n=2, failed=1, queued=1),
        n=2,
        problems=(trouble,),
        workers=(QueueWorkers(title, 0, 0, (trouble,), f"run {command}", command), QueueWorkers("q", 1, 2, (trouble,))),
        failures=(FailureLine(kind, 1),),
    )
    told = job_details.JobDetails(title, message, trace, trace)
    inner = html.static(record, {0: told}) + html.job_html(told, trouble) + html.message(message, wrong=True)
    page = Elements(html.beside("ab12", inner, final=True))
    assert set(page.tags) <= OURS
    assert page.tags.count("style") == 1
    allowed = {"style", "class", "title", "role", "tabindex"}
    assert {name for name in page.names if not name.startswith("aria-")} <= allowed


def test_nothing_is_loaded_from_the_network():
    page = html.beside("ab12", html.static(PanelModel(title="t", tally=Tally(n=1, queued=1), n=1)), final=False)
    assert "http" not in page
    assert "url(" not in page
    assert "src=" not in page


def test_running_jobs_say_how_far_they_are_a_handful_at_most_and_keep_their_lines(session, fleet, tmp_path):
    def work(path, n):
        nbqueue.progress(n, 40, "<b>reading</b>") if n else nbqueue.progress(7.5)
        while not (path / f"go{n}").exists():
            time.sleep(0.01)

    fleet.start(slots=8)
    batch = nbqueue.starmap(work, [(tmp_path, n) for n in range(8)])
    poller = ProgressPoller()
    wait_until(lambda: len(session.broker.noted(batch.id)) == 8, 30)

    def going():
        poller._next = 0.0
        poller.poll([batch.ref])
        return [each and int(each.job.rpartition(":")[2]) for each in poller.running]

    wait_until(lambda: going() == [0, 1, 2, 3, 4])
    page = Elements(html.head(model.snapshot([batch.ref], RateEstimator(), FailureGroups(str), (), poller.running)))
    assert f"{batch.id}:0 7.5" in page.text
    assert f"{batch.id}:4  4 of 40, <b>reading</b>" in page.text
    assert page.tags.count("b") == 1  # the title's
    heights = {len(poller.running)}

    def ends(*numbers):
        for n in numbers:
            (tmp_path / f"go{n}").touch()
        wait_until(lambda: all(n in batch.ref.state.outcomes for n in numbers), 20)
        heights.add(len(model.snapshot([batch.ref], RateEstimator(), FailureGroups(str), (), poller.running).running))

    ends(1)
    assert [each is None for each in poller.running] == [False, True, False, False, False]
    wait_until(lambda: going() == [0, 5, 2, 3, 4])  # the others stay where they are
    ends(0, 2, 3, 4, 6)
    wait_until(lambda: going() == [7, 5, None, None, None])
    assert heights == {SHOWN}
    ends(5, 7)
    assert batch.wait(20)
    assert set(going()) == {None}
    assert seen(batch).running == ()


def test_one_failed_of_very_many_is_still_seen():
    page = html.head(PanelModel(title="t", tally=Tally(n=N, failed=1, queued=N - 1), n=N))
    assert "min-width:3px" in page
    assert "aria-label='0 finished, 1 failed, 99,999 queued'" in page


def test_what_is_not_copied_is_told_with_its_end():
    state = BatchState("b", "q", "", Spec(label="f"))
    state.known, state.tally = True, Tally(n=40, finished=40)
    assert (
        model.retention_note(state, 37)
        == "37 results not saved here yet: on the server for 7 days after the batch ends"
    )
    state.expires_us = 4_102_444_800_000_000
    assert model.retention_note(state, 1).startswith("1 result not saved here yet: on the server until ")


def test_a_view_of_many_jobs_costs_no_more_than_one_of_few():
    batch = nbqueue.map(fails, [0], inline="collect")
    batch.ref.state = BatchState("big", "default", "", Spec(label="f"))
    for index in range(N):
        outcome = Outcome(State.FAILED, Cause.ERROR, 1, 0, 0, failure=Failure("KeyError", f"'{index % 3}'"))
        batch.ref.state.put(index, outcome)
    batch.ref.state.tally = Tally(n=N + 1, failed=N, queued=1)
    groups, pace = FailureGroups(str), RateEstimator()
    groups.add(batch.ref)
    while not groups.update():
        pass
    begun = time.thread_time()
    for _ in range(100):
        groups.update()
        html.head(model.snapshot([batch.ref], pace, groups, ()))
    assert time.thread_time() - begun < 1  # 10 ms of work each, of the 200 that there are


@pytest.mark.parametrize("over", [0, 5])
def test_the_pace_begins_anew_with_a_retry(over):
    pace = RateEstimator(age=1000.0)
    pace.see(over, ended=False)
    assert pace.elapsed >= 1000
    pace.see(over + 10, ended=False)
    assert pace.rate > 0
    assert pace.eta(10) is not None
    pace.see(over, ended=False)
    assert pace.elapsed < 1000
    assert pace.eta(10) is None


@pytest.mark.parametrize("several", [False, True])
def test_the_pace_begins_anew_with_items_that_come_after_the_end(several):
    pace = RateEstimator(age=1000.0, several=several)
    pace.see(0, ended=False)
    pace.see(10, ended=True)
    assert pace.elapsed >= 1000
    pace.see(10, ended=False)
    pace.see(12, ended=True)
    assert (pace.elapsed >= 1000) is several


def test_what_ended_before_it_was_seen_has_no_pace():
    pace = RateEstimator()
    pace.see(10, ended=True)
    assert (pace.elapsed, pace.rate) == (None, None)


def test_an_attached_batch_whose_jobs_ended_before_is_not_said_to_have_taken_until_now(session, hands):
    batch = nbqueue.map(abs, range(3), name="yesterday")
    hands.work()
    assert batch.wait(30)
    again = nbqueue.attach("yesterday")
    state = again.ref.state
    state.over = False  # as it stands until the collector has come round
    pace = RateEstimator(age=86_400.0)
    model.snapshot([again.ref], pace, FailureGroups(str), ())
    state.over = True
    seen = model.snapshot([again.ref], pace, FailureGroups(str), ())
    assert (seen.ended, seen.elapsed, seen.progress_text) == (True, None, "3 of 3")


def test_what_is_left_to_copy_is_no_part_of_the_time_that_jobs_took(session, hands):
    batch, pace = nbqueue.map(abs, range(3)), RateEstimator()
    model.snapshot([batch.ref], pace, FailureGroups(str), ())
    hands.work()
    assert batch.wait(30)
    batch.ref.state.over = False
    elapsed = model.snapshot([batch.ref], pace, FailureGroups(str), ()).elapsed
    assert elapsed > 0
    batch.ref.state.over = True
    assert model.snapshot([batch.ref], pace, FailureGroups(str), ()).elapsed == elapsed


class Handle:
    """An output of a cell that nobody looks at."""

    def update(self, *_, **__):
        pass


def test_a_panel_that_fails_is_given_up_and_the_others_go_on(session, hands, monkeypatch, caplog):
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Handle())
    monkeypatch.setattr(panel, "render_thread", panel.RenderThread())
    broken, sound = (panel.Panel(nbqueue.map(abs, range(2)).ref, retry.again) for _ in range(2))
    monkeypatch.setattr(broken._progress, "poll", lambda _: 1 / 0)
    wait_until(lambda: broken.broken and "ZeroDivisionError" in caplog.text)
    drawn = sound._drawn
    wait_until(lambda: sound._drawn > drawn)
    hands.work()
    wait_until(lambda: sound.closed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_painter_whose_thread_has_died_begins_another(session):
    render_thread, ticks = panel.RenderThread(), []

    class Dies:
        closed = False

        def tick(self):
            ticks.append(1)
            self.closed = len(ticks) > 1
            raise SystemExit

    first = Dies()
    render_thread.add(first)
    wait_until(lambda: ticks and not render_thread._thread.is_alive())
    render_thread.add(first)
    wait_until(lambda: len(ticks) > 1)
