"""A worker while its server cannot be used: it says what is wrong and what to do, waits in bounded memory, goes on."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time

import pytest
import troubles
from client.hands import Hands

import nbqueue
from nbqueue.errors import NoServer, ServerRefused, SetupError
from nbqueue.model import CallResult, Spec, State
from nbqueue.settings import host, python_version
from nbqueue.store import server as program
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect
from nbqueue.store.records import Fitness
from nbqueue.worker import settling
from nbqueue.worker.ledger import Task
from nbqueue.worker.notes import Notepad
from nbqueue.worker.parent import Parent
from nbqueue.worker.plan import Plan
from nbqueue.worker.score import Score
from nbqueue.worker.settling import Settler

AWAY = "No Redis server answers"


class Worker:
    """A parent in this process, whose turns the test makes."""

    def __init__(self, session, **plan):
        self.log = io.StringIO()
        plan = Plan(**{"slots": 1, "lease": 30.0, "beat": 0.1, **plan})
        self.parent = Parent(session.fresh_broker(), session.sealer, plan, score=Score(stream=self.log))
        self.parent.tenure.join()

    def said(self, text):
        return sum(text in line for line in self.log.getvalue().splitlines())

    def until(self, met, seconds=30):
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, self.log.getvalue()
            self.parent._turn()


@pytest.fixture
def worker(own):
    made = []

    def make(**plan):
        made.append(Worker(own, **plan))
        return made[-1]

    yield make
    for each in made:
        each.parent.stables.close()
        each.parent.ears.close()
        with contextlib.suppress(SetupError):
            each.parent.broker.leave(each.parent.tenure.id)


def hurt(session):
    return session.fresh_broker().client


@pytest.mark.parametrize("word", ["MISCONF", "READONLY", "BUSY"])
def test_a_trouble_is_one_line_that_names_the_remedy(own, worker, word):
    found = worker()
    batch = nbqueue.map(abs, [-1, -2])
    with troubles.MADE[word](hurt(own)):
        found.until(lambda: found.said(troubles.REMEDIES[word]))
        tries = set()
        found.until(lambda: tries.add(found.parent._retry_at) or len(tries) > 2)  # each try that fails sets the next
        with pytest.raises(ServerRefused, match=troubles.REMEDIES[word]):
            nbqueue.map(abs, [-3])
    found.until(lambda: batch.tally.finished == 2)
    assert found.said(troubles.REMEDIES[word]) == 1
    assert found.said("the server is back") == 1


def test_a_full_server_refuses_the_notebook_and_no_worker(own, worker):
    found = worker()
    batch = nbqueue.map(abs, [-1, -2])
    with troubles.oom(hurt(own)):
        with pytest.raises(ServerRefused, match="config set maxmemory"):
            nbqueue.map(abs, [-3])
        found.until(lambda: batch.tally.finished == 2)
    assert not found.said("!!")
    assert nbqueue.map(abs, []).done


def test_each_kind_of_trouble_is_said_once_an_outage(own, worker):
    found, client = worker(), hurt(own)
    an_outage(found, client, 1)
    an_outage(found, client, 2)
    assert (found.said("!!"), found.said("No Redis")) == (4, 0)


def an_outage(found, client, number):
    """Two troubles, and the first once more."""
    with troubles.readonly(client):
        found.until(lambda: found.said("primary") == number)
        with troubles.busy(client):
            found.until(lambda: found.said("script kill") == number)
        tries = found.parent._retry_at
        found.until(lambda: found.parent._retry_at > tries + 0.5)
    found.until(lambda: found.said("the server is back") == number)


# ---------------------------------------------------------------- outcomes that wait


def test_what_waits_is_bounded_and_lands_when_the_server_is_back(own, worker, short_folder, monkeypatch):
    monkeypatch.setattr(settling, "MOST_BYTES", 600_000)
    found = worker(lease=60.0)
    parent, settler = found.parent, found.parent.settler
    assert nbqueue.submit(abs, -1).batch.state is not None
    found.until(lambda: found.said("<-") == 1)
    parent.stables.recent.mean = 1e-4  # as if calls had been short: many are taken ahead
    batch = nbqueue.map(bytes, [200_000] * 20)
    found.until(lambda: parent.ledger.count_waiting + len(parent.ledger.riding[0]) > 10)
    os.kill(program.status(short_folder).pid, signal.SIGKILL)
    for pace in parent.ledger.paces.values():
        pace.mean = 1.0  # one call at a time is sent to the stable
    found.until(lambda: settler.full)
    found.until(lambda: not parent.ledger.riding[0])
    waiting, weight = parent.ledger.count_waiting, settler.weight
    assert waiting
    assert weight < 600_000 + 30 * 201_000
    tries = parent._retry_at
    found.until(lambda: parent._retry_at > tries + 0.5)
    assert (parent.ledger.count_waiting, settler.weight) == (waiting, weight)  # nothing begins
    assert parent.claims.wish() == (0, 0)
    assert found.said(AWAY) == 1
    program.start(short_folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))
    found.until(lambda: batch.tally.finished == 20)
    assert batch.wait(20)
    assert {len(value) for value in batch.results()} == {200_000}
    assert (settler.pending, settler.weight) == (0, 0)


@pytest.fixture
def small(monkeypatch):
    """What counts as large is small enough to be sent quickly."""
    monkeypatch.setattr(settling, "BIG", 50_000)


def big_outcome(url, sealer):
    broker = Broker(connect(url), "x")
    score = Score(stream=io.StringIO())
    settler = Settler(broker, sealer, score, Notepad(broker, sealer, score), "here", "w")
    task = Task(1, "b", 0, 1, "w:1", b"", Spec(label="f"), 0.0)
    settler.add(task, CallResult(State.FINISHED, None, 0.0, 1.0, value=bytes(settling.BIG)), b"")
    return settler


def test_a_large_result_outlives_the_loading_of_a_server(own, small, short_folder):
    with troubles.loading(short_folder, os.environ.get("NBQUEUE_TEST_SERVER")) as url:
        settler = big_outcome(url, own.sealer)
        weight = settler.weight
        for _ in range(settling.TRIES + 1):
            with pytest.raises(NoServer, match=troubles.REMEDIES["LOADING"]):
                settler.flush()
        assert settler.weight == weight > settling.BIG  # it was not given up as too large


def test_a_large_result_that_the_server_never_takes_is_given_up(own, small, short_folder):
    """What answers otherwise, and not to this one: the tries count only where it was heard in between."""
    with troubles.loading(short_folder, os.environ.get("NBQUEUE_TEST_SERVER")) as url:
        settler = big_outcome(url, own.sealer)
        for _ in range(settling.TRIES):
            settler.clock(own.broker.now_us(), time.monotonic())
            with pytest.raises(NoServer):
                settler.flush()
        assert settler.weight < 10_000


def test_what_is_dropped_weighs_nothing(own, small):
    settler = big_outcome(own.settings.url, own.sealer)
    assert settler.forget() == 1
    assert (settler.weight, settler.pending) == (0, 0)


def test_answers_that_were_long_on_their_way_change_no_date(own, small):
    settler = big_outcome(own.settings.url, own.sealer)
    asked = time.monotonic()
    settler.clock(own.broker.now_us(), asked)
    known = settler.offset
    for late in (3.0, 0.5):  # seconds that the answer took
        asked = time.monotonic() - late
        settler.clock(int(asked * 1e6 + known) + 1000, asked)
        assert settler.offset == known
    asked = time.monotonic()
    settler.clock(own.broker.now_us() + 60_000_000, asked)  # the server's clock was set
    assert 59e6 < settler.offset - known < 61e6


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("verb", ["claim", "release", "renew", "settle"])
def test_a_call_without_an_answer_leaves_no_job_in_its_name(worker, own, monkeypatch, verb, arrives):
    """What it cannot begin it gives back, also where the first tries at that fail, and while a long job runs."""
    served, hands = worker(slots=1), Hands(own)
    batch = nbqueue.map(time.sleep, [0.0] * 300 + [600.0] + [0.0] * 40)
    broker, run, lost = served.parent.broker, served.parent.broker._run, []

    def unheard(name, *arguments):
        # From when a job runs that does not end.
        if name == verb and len(lost) < 2 and served.parent.ledger.begun():
            lost.append(run(name, *arguments) if arrives else None)
            raise NoServer(url=own.broker.url, why="no answer", remedy="")
        return run(name, *arguments)

    def settled():
        if len(lost) == 2 and 300 in {task.index for task in served.parent.ledger.begun()}:
            hands.work()  # another worker, which takes what this one cannot begin
        tally = own.broker.view(batch.id).tally
        return len(lost) == 2 and (tally.finished, tally.started) == (340, 1)

    monkeypatch.setattr(broker, "_run", unheard)
    if verb == "settle":
        monkeypatch.setattr(broker, "_run_many", _unheard_many(broker._run_many, own.broker.url, lost, arrives=arrives))
    served.until(settled)
    batch.cancel()


def _unheard_many(run_many, url, lost, *, arrives):
    def unheard(name, calls, **how):
        if name == "settle" and len(lost) < 2:
            lost.append(run_many(name, calls, **how) if arrives else None)
            raise NoServer(url=url, why="no answer", remedy="")
        return run_many(name, calls, **how)

    return unheard


def test_what_the_store_says_it_holds_and_it_does_not_know_goes_back_while_it_works(worker, own):
    served = worker(slots=1)
    long = nbqueue.map(time.sleep, [600.0])
    served.until(served.parent.ledger.begun)
    batch = nbqueue.map(abs, [-1, -2])
    tenure, claims = served.parent.tenure, served.parent.claims
    fit = Fitness(keys=own.sealer.keyring.ids, python=python_version(), host=host())
    asked = {"free": 2, "want": 2, "fit": fit}
    assert own.broker.claim(tenure.id, f"{tenure.id}:{claims._count + 7}", tenure.queues, **asked).grants
    served.until(lambda: own.broker.view(batch.id).tally.queued == 2)
    assert served.said("gives back 2 jobs") == 1
    long.cancel()
    served.until(lambda: batch.tally.finished == 2)


class Slow:
    """What takes a while to be loaded, and says when that begins."""

    def __init__(self, log, gate):
        self.log, self.gate = log, gate

    def __setstate__(self, state):
        with open(state["log"], "a") as log:  # noqa: PTH123 - in a process that loads nothing else
            log.write("loads\n")
        while not os.path.exists(state["gate"]):  # noqa: PTH110
            time.sleep(0.01)

    def __call__(self, x):
        return x


def test_a_canceled_job_that_waits_for_a_load_does_not_begin_it_again_for_others(worker, own, tmp_path):
    served = worker(slots=2)
    log, gate = tmp_path / "log", tmp_path / "gate"
    slow = Slow(str(log), str(gate))
    batch = nbqueue.map(lambda x: slow(x), range(2))  # noqa: PLW0108 - Slow is captured, and loaded with the function
    served.until(lambda: log.exists() and len(served.parent.ledger.free_slots()) == 0)
    (loading,) = served.parent.stables.loading()
    batch[0].cancel()
    served.until(lambda: len(served.parent.ledger.tasks) == 1)
    assert served.parent.stables.loading() == [loading]
    gate.touch()
    served.until(lambda: batch[1].is_finished)
    assert batch[0].is_canceled
