"""The commands that look at queues and change them, run as a user runs them."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner
from helpers import wait_until

import nbqueue
from nbqueue import Queue
from nbqueue.cli.main import cli
from nbqueue.errors import BadInput


def one_over(x):
    return 1 / x


@pytest.fixture
def nbq(session, monkeypatch):
    """`nbq("info", "--json")`: the answer of one command, which must succeed unless `code` says otherwise."""
    monkeypatch.setenv("NBQUEUE_URL", session.settings.url)
    monkeypatch.setenv("NBQUEUE_NAMESPACE", session.settings.namespace)

    def run(*words, code=0):
        done = CliRunner().invoke(cli, words, prog_name="nbqueue", auto_envvar_prefix="NBQUEUE")
        assert done.exit_code == code, (words, done.output, done.exception)
        return done.output.strip()

    return run


@pytest.fixture
def place(tmp_path):
    """A folder with a module in it."""
    (tmp_path / "words.py").write_text(
        textwrap.dedent("""
        def count(text, times=1):
            print("counting", text)
            return len(text.split()) * times
        def fail(text):
            raise LookupError(text)
        """)
    )
    return tmp_path


def test_enqueue_as_a_user_types_it(session, fleet, place, nbq):
    (place / "text").write_text("a b c")
    words = ["enqueue", "-q", "low", "--job-id", "j1", "words.count", "@text", "times:=2"]
    done = subprocess.run([sys.executable, "-m", "nbqueue", *words], cwd=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "j1\n"), done.stderr
    fleet.start("low").up()
    job = Queue("low").fetch_job("j1")
    assert job.wait(20) == 6
    told = nbq("show", "j1", "--args", "--result")
    for fact in ("count", "low", "finished", "'a b c', times=2", "6", "counting a b c"):
        assert fact in told
    assert "a b c" not in nbq("show", "j1").replace("counting a b c", "")


def test_enqueue_later_and_after_others(session, fleet, nbq):
    first = nbq("enqueue", "operator.pos", ":1", "--schedule-in", "0.2")
    second = nbq("enqueue", "operator.neg", ":2", "--depends-on", first)
    q = Queue()
    assert [q.fetch_job(name).get_status() for name in (first, second)] == ["scheduled", "deferred"]
    fleet.start().up()
    assert q.fetch_job(second).wait(20) == -2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nonsense",), "not a dotted function name"),
        (("operator.pos", "--timeout", "soon"), "not a duration"),
        (("operator.pos", ":1", "--depends-on", "nobody"), "nobody"),
        (("operator.pos", "--job-id", "a b"), "cannot be used"),
        (("operator.pos", ":{"), "not JSON"),
        (("operator.pos", "--schedule-in", "1", "--schedule-at", "2030-01-01"), "not both"),
    ],
)
def test_enqueue_says_what_is_wrong(session, nbq, words, why):
    done = subprocess.run([sys.executable, "-m", "nbqueue", "enqueue", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_info_says_what_there_is(session, fleet, nbq):
    worker = fleet.start("low", slots=3).up()
    low, other = Queue("low"), Queue("other")
    assert low.enqueue("operator.pos", 1).wait(20) == 1
    other.enqueue("operator.pos", 1)
    found = json.loads(nbq("info", "--json"))
    rows = {row["queue"]: row for row in found["queues"]}
    assert (rows["low"]["finished"], rows["low"]["slots"], rows["other"]["queued"]) == (1, 3, 1)
    assert [(row["pid"], row["queues"]) for row in found["workers"]] == [(worker.pid, ["low"])]
    assert [row["queue"] for row in found["batches"]] == ["other"]
    only = json.loads(nbq("info", "other", "--json"))
    assert ([row["queue"] for row in only["queues"]], only["workers"]) == (["other"], [])
    assert "other" in nbq("info")
    assert "No queue lwo has been used yet" in nbq("info", "lwo")
    assert "no such queue: lwo" in nbq("info", "low", "lwo")
    assert "Start one with `nbqueue worker other`" in nbq("info", "other")


def test_warnings_are_one_line_and_who_only_looks_gets_none(session, nbq):
    def told(*words):
        return subprocess.run([sys.executable, "-m", "nbqueue", *words], capture_output=True, text=True).stderr

    safe = session.broker.client.config_get("appendonly")["appendonly"]
    session.broker.client.config_set("appendonly", "no")
    try:
        line = told("enqueue", "--job-id", "j1", "operator.pos", ":1")
        assert (line.startswith("nbqueue: The server at"), line.count("\n")) == (True, 1)
        assert [told("show", "j1"), told("info"), told("cancel", "j1")] == ["", "", ""]
    finally:
        session.broker.client.config_set("appendonly", safe)


def test_a_traceback_is_not_broken_where_it_is_piped(session, fleet, nbq):
    fleet.start("low").up()
    job = Queue("low").enqueue("os.listdir", "/no/" + "long/" * 50)
    assert isinstance(job.exception(20), FileNotFoundError)
    done = subprocess.run([sys.executable, "-m", "nbqueue", "show", job.id], capture_output=True, text=True)
    assert all(line in done.stdout for line in job.exc_info.splitlines())


def test_info_watches(session, nbq):
    Queue("low").enqueue("operator.pos", 1)
    words = [sys.executable, "-m", "nbqueue", "info", "--interval", "0.05", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.terminate()
    assert first["queues"] == second["queues"]


def test_a_queue_that_is_not_there_is_no_queue_of_none(session, nbq):
    with pytest.raises(BadInput, match="no queue 'nosuch': no queue has been used yet"):
        CliRunner().invoke(cli, ["requeue", "--all", "-q", "nosuch"], prog_name="nbqueue", catch_exceptions=False)
    Queue("low").enqueue(abs, 1)
    for words in (["requeue", "--all", "-q", "nosuch"], ["empty", "low", "nosuch"]):
        with pytest.raises(BadInput, match="no queue 'nosuch': existing queues are low"):
            CliRunner().invoke(cli, words, prog_name="nbqueue", catch_exceptions=False)
    assert Queue("low").count == 1  # nothing was begun


def test_what_is_typed_in_a_shell_is_answered_in_its_words(session, nbq, tmp_path):
    nbq("enqueue", "--job-id", "x1", "os.path.basename", "/a/b")
    for words, told in (
        (["--job-id", "x1", "os.path.basename", "/a/b"], "see that job with `nbqueue show x1`"),
        (
            ["os.path.basename", "/a/b", "timeout=5"],
            r"basename\(p\) has no parameter 'timeout'. Did you mean the option --timeout 5",
        ),
        (["os.path.basename", "/a/b", "job_id=5"], "--job-id 5"),
    ):
        with pytest.raises(BadInput, match=told):
            CliRunner().invoke(cli, ["enqueue", *words], prog_name="nbqueue", catch_exceptions=False)
    env = {key: value for key, value in os.environ.items() if not key.startswith("NBQUEUE_")}
    env |= {"NBQUEUE_HOME": str(tmp_path / "h"), "NBQUEUE_SLOTS": "1"}
    command = [sys.executable, "-m", "nbqueue"]
    try:
        done = subprocess.run(
            [*command, "enqueue", "os.path.basename", "/a/b"], env=env, capture_output=True, text=True, timeout=60
        )
        assert "to stop them now: nbqueue server stop\n" in done.stderr
    finally:
        assert subprocess.run([*command, "server", "stop"], env=env, capture_output=True, timeout=60).returncode == 0


def test_requeue_empty_and_cancel(session, fleet, nbq, place):
    q = Queue("low")
    waiting = [q.enqueue("operator.pos", i) for i in range(3)]
    assert nbq("cancel", waiting[0].id) == f"1 job of {waiting[0].id} canceled"
    assert nbq("empty", "low") == "2 jobs canceled in low"
    assert len(q) == 0
    assert nbq("requeue", waiting[0].id) == f"{waiting[0].id} runs again"
    fleet.start("low").up()
    failed = q.enqueue("operator.truediv", 1, 0)
    assert isinstance(failed.exception(20), ZeroDivisionError)
    assert nbq("requeue", "--all", "--queue", "low") == f"1 job to run again: 1 of {failed.id}"
    wait_until(lambda: (job := q.fetch_job(failed.id)).attempt == 2 and job.is_failed)
    assert "no-such" in nbq("requeue", "no-such", code=1)
    assert "ZeroDivisionError: division by zero" in nbq("show", failed.id)


def test_a_batch_is_shown_by_its_id_or_name_and_requeued_by_the_batch(session, fleet, nbq):
    fleet.start().up()
    batch = nbqueue.map(one_over, [1, 0, 0], name="two of three")
    other = nbqueue.map(one_over, [0])
    assert batch.wait(30)
    assert other.wait(30)
    for name in (batch.id, "two of three"):
        told = nbq("show", name)
        assert "3: 1 finished, 2 failed" in told
        assert f"{batch.id}:2" in told
        assert "ZeroDivisionError" in told
        assert "one_over" in told
    assert json.loads(nbq("show", batch.id, "--json"))["seed"] == batch.seed
    assert nbq("requeue", "--all") == f"3 jobs to run again: 2 of two of three, 1 of {other.id}"


def test_suspend_and_resume(session, fleet, nbq):
    fleet.start("low").up()
    nbq("suspend")
    job = Queue("low").enqueue("operator.pos", 1)
    assert "suspended until resumed" in nbq("info")
    assert job.get_status() == "queued"
    nbq("resume")
    assert job.wait(20) == 1
    assert "suspended" not in nbq("info")


def test_stop_and_shutdown(session, fleet, nbq):
    worker = fleet.start("low", "--name", "anna").up()
    job = Queue("low").enqueue("time.sleep", 60)
    wait_until(lambda: job.get_status() == "started")
    nbq("stop", job.id)
    wait_until(lambda: job.get_status() == "canceled")
    assert "is not running" in nbq("stop", job.id, code=1)
    nbq("shutdown", "anna")
    assert worker.process.wait(20) == 0
    assert "nobody" in nbq("shutdown", "nobody", code=1)


def test_options_come_from_the_config_file_and_the_environment(session, tmp_path, nbq):
    path = tmp_path / "nbqueue.toml"
    path.write_text('[worker]\nqueues = ["low", "high"]\nburst = true\n')
    words = [sys.executable, "-m", "nbqueue", "worker", "-c", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "queues low high" in done.stderr + done.stdout
    path.write_text("[worker]\nbrust = true\n")
    assert "'brust'" in str(subprocess.run(words, capture_output=True, text=True).stderr)
    path.write_text("[wroker]\nburst = true\n")
    assert "[wroker]" in str(subprocess.run(words, capture_output=True, text=True).stderr)
