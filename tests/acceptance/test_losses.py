"""Where RQ 3.0 was seen to lose, repeat or hide work: each of these fails if nbqueue did what RQ does."""

import os
import pickle
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from fleet import processes
from helpers import FIT, wait_until
from proxy import Proxy

import nbqueue
from nbqueue import Queue
from nbqueue.cli.main import cli
from nbqueue.client.session import session as sessions
from nbqueue.errors import InUse
from nbqueue.model import Cause
from nbqueue.store.scripts import load


def noted(diary, word="ran", seconds=0.0):
    with Path(diary).open("a") as file:
        file.write(f"begin {word}\n")
        file.flush()
        time.sleep(seconds)
        file.write(f"end {word}\n")
    return word


def fails(diary):
    noted(diary)
    raise LookupError("as it should")


@pytest.fixture
def q(session):
    return Queue("low")


@pytest.fixture
def lossy(server, home):
    """A proxy to the test server, and a session through it."""
    proxy = Proxy(server.url)
    session = nbqueue.connect(proxy.url, namespace=f"t{os.urandom(4).hex()}")
    yield proxy, session
    session.collector.stop()
    sessions._current = None
    proxy.close()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_taken_by_a_worker_that_dies_at_once_is_not_gone(q, fleet, diary, signum):
    first = fleet.start("high", "default", "low", "--grace", "0").up()
    job = q.enqueue(noted, str(diary.path), seconds=1.0)
    wait_until(lambda: job.get_status() == "started")
    code = first.stop(signum)
    assert (code == 0) == (signum == signal.SIGTERM)
    fleet.start("high", "default", "low").up()
    assert job.wait(20) == "ran"
    assert [line for line in diary.lines if line.startswith("end")] == ["end ran"]


def test_a_job_claimed_but_not_begun_costs_no_retry(q, session, fleet, diary):
    job = q.enqueue(fails, str(diary.path), retries=1)
    broker = session.broker
    broker.join("doomed", b"", ["low"], 1, lease=0.3, beat=0.1)
    claimed = broker.claim("doomed", "doomed:1", ["low"], free=1, want=1, fit=_fit(session))
    assert [grant.batch for grant in claimed.grants] == [job.id]
    fleet.start("low").up()
    assert isinstance(job.exception(20), LookupError)
    assert len([line for line in diary.lines if line.startswith("begin")]) == 2


def _fit(session):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return type(FIT)(keys=session.sealer.keyring.ids, python=version, host="elsewhere")


def test_a_lost_reply_of_a_claim_loses_no_job(lossy, home, diary):
    from fleet import Fleet

    proxy, session = lossy
    fleet = Fleet(proxy.url, session.settings.namespace, home)
    worker = fleet.start("low", slots=1).up()
    proxy.lose(load("claim").sha, least=200)  # a reply with a job in it
    job = Queue("low").enqueue(noted, str(diary.path))
    assert job.wait(20) == "ran", worker.log
    assert proxy.lost == 1
    assert diary.lines == ["begin ran", "end ran"]
    fleet.close()


def test_a_lost_reply_of_an_enqueue_runs_the_job_once(lossy, home, diary):
    from fleet import Fleet

    proxy, session = lossy
    q = Queue("low")
    q.enqueue(noted, str(diary.path), "first")  # the script is known to the server from here on
    proxy.lose(load("submit").sha)
    job = q.enqueue(noted, str(diary.path), "second")
    assert proxy.lost == 1
    assert len(q) == 2
    fleet = Fleet(proxy.url, session.settings.namespace, home)
    fleet.start("low", "--burst", slots=1)
    assert job.wait(20) == "second"
    assert sorted(diary.lines) == ["begin first", "begin second", "end first", "end second"]
    fleet.close()


def test_the_job_of_a_killed_worker_does_not_live_on(q, fleet, diary):
    first = fleet.start("low", slots=1).up()
    job = q.enqueue(noted, str(diary.path), seconds=1.0)
    wait_until(lambda: diary.lines)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not processes([first.mark]))
    assert diary.lines == ["begin ran"]
    fleet.start("low").up()
    assert job.wait(20) == "ran"
    assert diary.lines == ["begin ran", "begin ran", "end ran"]


def test_a_job_that_exits_by_itself_has_failed(q, fleet):
    fleet.start("low").up()
    job = q.enqueue(os._exit, 0)
    assert job.exception(20) is not None
    assert (job.get_status(), job.outcome.cause) == ("failed", Cause.CRASHED)


def test_a_result_that_cannot_be_pickled_is_a_failure(q, fleet):
    fleet.start("low").up()
    job = q.enqueue(threading.Lock)
    with pytest.raises(TypeError, match="cannot be sent"):
        job.wait(20)
    assert (job.get_status(), job.outcome.cause) == ("failed", Cause.UNSERIALIZABLE)


def stubborn():
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


def hang_in_c():
    return re.match(r"(a+)+$", "a" * 60 + "b")


@pytest.mark.parametrize("function", [stubborn, hang_in_c])
def test_except_exception_does_not_swallow_a_timeout(q, fleet, function):
    fleet.start("low").up()
    job = q.options(timeout=0.3, grace=0.3).enqueue(function)
    assert job.exception(20) is not None
    assert job.outcome.cause == Cause.TIMEOUT
    assert job.outcome.runtime_us < 5e6  # RQ needs a minute more


def test_a_server_that_is_away_during_a_job_costs_no_result(home, short_folder, diary):
    from fleet import Fleet

    from nbqueue.store import server as program

    named = os.environ.get("NBQUEUE_TEST_SERVER")
    running = program.start(short_folder, program=named)
    session = nbqueue.connect(running.url)
    fleet = Fleet(running.url, session.settings.namespace, home)
    worker = fleet.start("low", lease=5).up()
    job = Queue("low").enqueue(noted, str(diary.path), seconds=0.5)
    wait_until(lambda: diary.lines)
    os.kill(running.pid, signal.SIGKILL)
    wait_until(lambda: len(diary.lines) == 2)  # it has ended while the server was away
    program.start(short_folder, program=named)
    assert job.wait(20) == "ran", worker.log
    assert diary.lines == ["begin ran", "end ran"]
    fleet.close()
    session.collector.stop()
    sessions._current = None


def test_the_job_of_a_dead_node_runs_again_when_its_lease_ends(q, fleet, diary):
    first = fleet.start("low", lease=1.0, beat=0.2).up()
    job = q.enqueue(noted, str(diary.path), seconds=0.7)
    wait_until(lambda: diary.lines)
    for pid in [first.pid, *first.tree()]:
        with suppress(ProcessLookupError):  # it ended with the one before
            os.kill(pid, signal.SIGKILL)
    second = fleet.start("low", lease=1.0, beat=0.2).up()
    assert job.wait(20) == "ran", second.log
    assert job.outcome.attempt == 2


def test_an_id_in_use_is_an_error_and_the_first_job_is_untouched(q, fleet):
    first = q.enqueue(str.upper, "first", job_id="one")
    with pytest.raises(InUse, match="one"):
        q.enqueue(str.upper, "second", job_id="one")
    fleet.start("low").up()
    assert first.wait(20) == "FIRST"
    with pytest.raises(InUse, match="one"):  # also when it has ended
        q.enqueue(str.upper, "second", job_id="one")
    assert q.fetch_job("one").result == "FIRST"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_poisoned_meta_and_results_run_no_code_where_one_looks(no_copy, q, session, anew, fleet, tmp_path):
    fleet.start("low").up()
    job = q.enqueue(str.upper, "a", meta={"user": "anna"})
    assert job.wait(20) == "A"
    trap = tmp_path / "sprung"
    poison = pickle.dumps(Bomb(trap))
    broker = session.broker
    out = broker.client.hget(broker.keys.part(job.id, "out"), 0)
    broker.client.hset(broker.keys.part(job.id, "meta"), 0, poison)
    broker.client.hset(broker.keys.part(job.id, "out"), 0, out[:3] + poison)
    broker.client.hset(broker.keys.part(job.id, "args"), 0, poison)
    again = anew(job.id)[0]
    q.to_frame()
    runner = CliRunner()
    for words in (["info"], ["batches"], ["show", job.id], ["show", "--args", "--result", job.id]):
        runner.invoke(cli, [*words, "--url", session.settings.url, "--namespace", session.settings.namespace])
    for look in (lambda: again.meta, lambda: again.result, lambda: again.args):
        with pytest.raises(nbqueue.NbqueueError, match="signature"):
            look()
    assert not trap.exists()
