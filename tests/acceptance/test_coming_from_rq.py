"""The page "Coming from RQ": every snippet runs, every command and every test that it names exists."""

import os
import pickle
import re
import shlex
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import redis
from helpers import eventually
from redis import Redis

import nbqueue
from nbqueue import settings
from nbqueue.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from-rq.md").read_text()
KNOWN, COMMANDS, SILENT, LOSSES = (
    table.strip().splitlines()[2:] for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
)
TESTS = (ROOT / "tests/acceptance/test_losses.py").read_text()


def cells(row):
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def f(text):
    return len(text.split())


def g(count):
    return count + 1


def report(job, connection, *what):
    return None


@pytest.fixture
def names(session, fleet, home):
    """What the snippets take for granted: a queue and its worker, a finished job."""
    fleet.start("low").up()
    connection = Redis.from_url(session.settings.url)
    q = nbqueue.Queue("low")
    job = q.enqueue(f, "a b")
    assert job.wait(20) == 2

    @nbqueue.job("low")
    def add(x, y):
        return x + y

    known = {name: getattr(nbqueue, name) for name in nbqueue.__all__}
    known |= {"nbqueue": nbqueue, "datetime": datetime, "timedelta": timedelta, "connection": connection}
    yield known | {"q": q, "job": job, "f": f, "g": g, "add": add, "report": report}
    connection.close()


def test_every_snippet_of_the_page_runs(names):
    assert len(KNOWN) >= 25
    names["q"].enqueue(f, "kept", job_id="x0")
    for row in KNOWN:
        for snippet in re.findall(r"`([^`]*)`", cells(row)[1]):
            result = eval(snippet, names)
            if isinstance(result, nbqueue.Job) and "repeat" not in snippet:
                assert result.wait(20) is not None, snippet
            if isinstance(result, list) and result and isinstance(result[0], nbqueue.Job):
                assert all(job.wait(20) for job in result), snippet


def test_every_command_of_the_page_exists(tmp_path):
    assert len(COMMANDS) >= 9
    (tmp_path / "file").write_text("text")
    for row in COMMANDS:
        for line in re.findall(r"`(nbqueue [^`]*)`", cells(row)[1]):
            name, *words = shlex.split(line)[1:]
            command = cli.get_command(None, name)
            assert command is not None, line
            flags = {flag for option in command.params for flag in option.opts}
            assert {word for word in words if word.startswith("-")} <= flags, line


def test_what_differs_in_silence_has_a_way_that_works(names, monkeypatch):
    assert len(SILENT) >= 14
    known = (ROOT / "docs/settings.md").read_text()
    for row in SILENT:
        way = re.findall(r"`([^`]*)`", cells(row)[2])
        assert way, row
        for word in way:
            if re.fullmatch(r"NBQUEUE_\w+", word):
                assert word in known, word
            elif word.startswith("nbqueue "):
                name, *words = shlex.split(word)[1:]
                flags = {flag for option in cli.get_command(None, name).params for flag in option.opts}
                assert {each for each in words if each.startswith("-")} <= flags, word
            else:
                eval(word, names)


def test_the_sample_config_is_one(tmp_path):
    path = tmp_path / "nbqueue.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert settings.load(config=path).url == "redis://localhost:6379"
    assert settings.command_tables(path)["worker"]["burst"] is True


def test_every_loss_of_rqs_has_its_test():
    named = [re.search(r"`(test_\w+)`", cells(row)[2])[1] for row in LOSSES]
    assert len(set(named)) == 12
    for name in named:
        assert f"def {name}(" in TESTS


def test_the_walk_of_the_slides(session, home):
    program = [sys.executable, str(ROOT / "examples/from_rq.py"), session.settings.url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert "queued, 1 in the queue, result None" in told
    assert "finished, result 6" in told
    assert "cat.png at 64, {'user': 'anna', 'width': 64}" in told
    assert "deferred until first has finished" in told
    assert "then finished: 6" in told
    assert "ZeroDivisionError" in told
    assert "1 runs again" in told
    assert "4 words" in told


# ---------------------------------------------------------------- which code runs


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Writes a module `shop` anew, as a deployment does; this process has imported the first."""
    folder = tmp_path / "release"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    written = []

    def deploy(body):
        # Python takes what has the same second and size for the same: each text is longer than the one before.
        written.append(body)
        (folder / "shop.py").write_text(f"def pay(x):\n    {body}\n" + "#" * 100 * len(written))
        return __import__("shop")

    yield deploy
    sys.modules.pop("shop", None)


def test_fix_deploy_requeue(session, fleet, shop):
    worker = fleet.start("low", "other").up()
    q, other = nbqueue.Queue("low"), nbqueue.Queue("other")
    broken = shop("raise ValueError(x)")
    jobs = [q.enqueue(broken.pay, 1), q.enqueue("shop.pay", 2), *q.enqueue_many([q.prepare_data(broken.pay, (3,))])]
    jobs.append(nbqueue.job("low")(broken.pay).delay(4))
    jobs.append(other.enqueue("shop.pay", 5))
    assert all(isinstance(job.exception(20), ValueError) for job in jobs)
    shop("return x + 1")
    assert q.failed.requeue() == 4
    assert [job.wait(20) for job in jobs[:4]] == [2, 3, 4, 5]
    words = [sys.executable, "-m", "nbqueue", "requeue", "--all", "--url", session.settings.url]
    subprocess.run([*words, "--namespace", session.settings.namespace], check=True, timeout=60, capture_output=True)
    eventually(lambda: jobs[4].get_status() == "finished")
    assert "has changed" in worker.log


def test_what_was_requeued_here_has_no_old_outcome_on_any_handle(session, fleet, tmp_path):
    gate = tmp_path / "gate"

    def judge(path):
        return path.stat() and "fine"

    fleet.start("low").up()
    q = nbqueue.Queue("low")
    job = q.enqueue(judge, gate)
    seen, unseen = nbqueue.Job.fetch(job.id), nbqueue.Job.fetch(job.id)
    batch = nbqueue.map(judge, [gate] * 3, queue="low")
    ended = nbqueue.attach(batch.id)
    handles = [job, seen, batch[0], ended[0]]
    assert batch.wait(20)
    assert ended.wait(20)
    assert all(isinstance(each.exception(20), FileNotFoundError) for each in handles)
    session.broker.suspend(None)
    assert q.failed.requeue() == 4
    for each in [*handles, unseen]:
        assert each.get_status(refresh=False) == "queued"
        assert each.result is None
    assert (batch.tally.failed, batch.done, ended.done) == (0, False, False)
    gate.touch()
    session.broker.resume()
    assert [each.wait(20) for each in [*handles, unseen]] == ["fine"] * 5
    assert batch.results() == ended.results() == ["fine"] * 3
    nbqueue.requeue_job(job.id)
    assert job.wait(20) == seen.wait(20) == "fine"
    assert job.attempt == seen.attempt == 3


def test_an_edit_never_runs_as_old_code(session, fleet, shop):
    fleet.start("low").up()
    q = nbqueue.Queue("low")
    for turn in range(5):
        assert q.enqueue(shop(f"return x, {turn}").pay, 1).wait(20) == (1, turn)


def test_a_broken_deployment_holds_up_nobody_once_it_is_mended(session, fleet, shop):
    fleet.start("low").up()
    q = nbqueue.Queue("low")
    pay = shop("return x").pay
    assert q.enqueue(pay, 1).wait(20) == 1
    shop("return x +")
    job = q.enqueue(pay, 1)
    assert "LoadError" in repr(job.exception(20))
    shop("return -x")
    assert job.requeue().wait(20) == -1


def test_what_runs_ends_as_it_began(session, fleet, shop, tmp_path):
    worker = fleet.start("low").up()
    q = nbqueue.Queue("low")
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    wait = f"import time, os\n    open({str(begun)!r}, 'w').close()\n"
    wait += f"    while x and not os.path.exists({str(gate)!r}): time.sleep(0.01)\n    return"
    old = q.enqueue(shop(f"{wait} 'old'").pay, 1)
    eventually(begun.exists)
    assert q.enqueue(shop(f"{wait} 'new'").pay, 0).wait(20) == "new", worker.log
    gate.touch()
    assert old.wait(20) == "old"


def test_what_is_pinned_runs_with_its_code_or_waits(session, fleet, shop):
    worker = fleet.start("low").up()
    q = nbqueue.Queue("low")
    session.broker.suspend(None)
    old = shop("return 'old'").pay
    pinned = [q.options(pin=True).enqueue(old, 1), nbqueue.map(old, [1], queue="low")[0]]
    free = nbqueue.map(old, [1], queue="low", pin=False)[0]
    shop("return 'new'")
    session.broker.resume()
    assert free.wait(20) == "new"
    eventually(lambda: "is not the one that the function was submitted with" in worker.log)
    assert [job.get_status() for job in pinned] == ["queued", "queued"]


# ---------------------------------------------------------------- the same name, the same kind


def boom(x):
    raise KeyError(x)


def test_what_has_rqs_name_is_of_rqs_kind(session, fleet):
    q = nbqueue.Queue("low")
    assert q.jobs == []
    job = q.enqueue(boom, 1)
    assert q.jobs == [job]
    fleet.start("low").up()
    run = job.latest_result(timeout=20)
    assert run.type == run.Type.FAILED == "failed"
    assert "KeyError" in job.latest_result().exc_string
    failed = q.failed
    assert job.id in failed
    assert job in failed
    assert "another" not in failed
    assert (failed.count, failed.get_job_ids(), failed.get_job_count()) == (1, [job.id], 1)
    assert failed.requeue(job.id) == 1
    eventually(lambda: job.get_status() == "failed")
    with pytest.raises(nbqueue.NbqueueError, match="not among"):
        q.failed.requeue("another")
    q.failed.remove(job)
    assert q.failed.count == 0
    good = q.enqueue(f, "a b")
    assert good.latest_result(timeout=20).return_value == 2
    q.delete()
    eventually(lambda: not q.finished)


def test_the_attributes_of_a_job(session, fleet):
    q = nbqueue.Queue("low")
    first = q.enqueue(f, "a", ttl=90, result_ttl=50, failure_ttl=70, retry=nbqueue.Retry(max=3), meta={"a": 1})
    second = q.enqueue(f, "a", depends_on=first, repeat=nbqueue.Repeat(times=2))
    assert (first.ttl, first.result_ttl, first.failure_ttl, first.retries_left, first.repeats_left) == (
        90,
        50,
        70,
        3,
        None,
    )
    assert (second.ttl, second.retries_left, second.repeats_left) == (None, None, 2)
    assert (first.dependent_ids, second.dependent_ids) == ([second.id], [])
    assert first.func("a b c") == 3
    first.meta["b"] = 2
    first.save()
    assert nbqueue.Job.fetch(first.id).meta == {"a": 1, "b": 2}
    bad = q.enqueue(boom, 1, retry=nbqueue.Retry(max=2))
    fleet.start("low").up()
    assert isinstance(bad.exception(20), KeyError)
    assert (bad.retries_left, bad.number_of_retries, bad.retry_intervals, bad.repeat_intervals) == (0, 2, [0], None)
    assert second.repeat_intervals == [0]
    assert bad.latest_result().worker_name == bad.worker_name
    assert list(q.failed_job_registry) == list(q.failed) == [bad]


def tell():
    job = nbqueue.get_current_job()
    job.meta["told"] = True
    job.save()
    return job.get_status(), job.started_at, job.worker_name


def fail_until_the_last(folder):
    job = nbqueue.get_current_job()
    (folder / f"run {job.attempt}").write_text(f"{job.get_status()} {job.retries_left} {job.repeats_left}")
    (folder / f"at {job.attempt}").write_text(job.started_at.isoformat())
    if job.retries_left:
        raise ValueError("again")


def note_down(job, connection, *given):
    folder = job.args[0]
    told = f"{job.get_status()} {job.retries_left} {job.repeats_left} {job.worker_name}"
    (folder / f"end {job.attempt}").write_text(told)
    assert job.started_at.isoformat() == (folder / f"at {job.attempt}").read_text()


@pytest.mark.parametrize("simple", [False, True])
def test_jobs_and_callbacks_know_what_is_left_of_their_runs(session, fleet, tmp_path, simple):
    q = nbqueue.Queue("low")
    again = {"retry": nbqueue.Retry(max=2), "repeat": nbqueue.Repeat(times=1)}
    job = q.enqueue(fail_until_the_last, tmp_path, on_success=note_down, on_failure=note_down, **again)
    if simple:
        nbqueue.SimpleWorker([q]).work(burst=True)
    else:
        fleet.start("low", "--burst").process.wait(60)
    assert job.wait(20) is None
    runs, ends = ([(tmp_path / f"{what} {n}").read_text() for n in range(1, 7)] for what in ("run", "end"))
    left = ["2 1", "1 1", "0 1", "2 0", "1 0", "0 0"]
    assert runs == [f"started {each}" for each in left]
    states = ["failed", "failed", "finished"] * 2
    assert ends == [f"{state} {each} {job.worker_name}" for state, each in zip(states, left, strict=True)]
    assert [echo.failure for echo in job.echoes] == [None]


def test_a_failure_callback_in_a_fresh_process_is_told_the_same(session, fleet, tmp_path):
    def overrun(folder):
        (folder / "at 1").write_text(nbqueue.get_current_job().started_at.isoformat())
        os.kill(os.getpid(), 9)

    fleet.start("low").up()
    job = nbqueue.Queue("low").enqueue(overrun, tmp_path, on_failure=note_down)
    assert isinstance(job.exception(20), nbqueue.NbqueueError)
    eventually((tmp_path / "end 1").exists)
    assert (tmp_path / "end 1").read_text() == f"failed None None {job.worker_name}"


def test_a_job_knows_itself_and_workers_know_theirs(session, fleet):
    began = datetime.now().astimezone()
    fleet.start("low", "-n", "me").up()
    told = nbqueue.Queue("low").enqueue(tell)
    status, at, name = told.wait(20)
    assert told.get_meta() == {"told": True}
    assert status == "started"
    assert name == told.worker_name
    assert began < at < datetime.now().astimezone()
    (worker,) = nbqueue.Worker.all(queue="low")
    assert nbqueue.Worker.all(queue="other") == []
    assert nbqueue.Worker.count(queue=nbqueue.Queue("low")) == 1
    assert began < worker.birth_date <= worker.last_heartbeat + timedelta(seconds=5)
    assert worker.get_current_job() is None
    with pytest.raises(KeyError):
        nbqueue.Queue("low").enqueue(boom, 1, retry=1).wait(20)
    eventually(lambda: (worker.successful_job_count, worker.failed_job_count) == (1, 2))
    assert 0 < worker.total_working_time < 20


def test_a_simple_worker_counts_its_jobs_too(session):
    q = nbqueue.Queue("low")
    seen = []

    def tell(job, *error):
        (worker,) = nbqueue.Worker.all()
        eventually(lambda: worker.failed_job_count == 1)
        seen.append(worker.successful_job_count)

    q.enqueue(f, "a")
    q.enqueue(boom, 1)
    worker = nbqueue.SimpleWorker([q], exception_handlers=[tell])
    worker.beat = 0.05
    worker.work(burst=True)
    assert seen == [1]


def test_what_is_requeued_at_the_front_comes_first(session, fleet, tmp_path):
    q = nbqueue.Queue("low")
    jobs = [q.enqueue(boom, n) for n in range(3)]
    batch = nbqueue.map(boom, [7, 8, 9], queue="low")
    fleet.start("low", "--burst").process.wait(60)
    assert batch.wait(20)
    assert all(isinstance(job.exception(20), KeyError) for job in jobs)
    waits = q.enqueue(f, "a")
    jobs[0].requeue()
    jobs[1].requeue(at_front=True)
    assert q.failed.requeue(jobs[2].id, at_front=True) == 1
    batch.retry([0, 1])
    batch[2].requeue(at_front=True)
    order = [jobs[2], jobs[1], waits, jobs[0], batch[2], batch[0], batch[1]]
    assert q.job_ids == [job.id for job in order]
    waits.cancel()
    waits.requeue(at_front=True)
    assert q.job_ids[0] == waits.id


def test_the_functions_on_ids(session, fleet):
    connection = Redis.from_url(session.settings.url)
    q = nbqueue.Queue("low")
    job = q.enqueue(f, "a b")
    assert nbqueue.cancel_job(job.id)
    job = nbqueue.requeue_job(job.id)
    assert job.get_status() == "queued"
    nbqueue.suspend()
    assert nbqueue.is_suspended()
    worker = fleet.start("low", "-n", "me").up()
    nbqueue.resume()
    assert not nbqueue.is_suspended()
    assert job.wait(20) == 2
    assert not nbqueue.send_stop_job_command(connection, job.id, namespace=session.settings.namespace)
    nbqueue.send_shutdown_command(None, "me")
    assert worker.process.wait(20) == 0
    with pytest.raises(nbqueue.NbqueueError, match="There is no live worker"):
        nbqueue.send_shutdown_command(None, "nobody")
    connection.close()


def held(folder):
    (folder / f"run {nbqueue.get_current_job().attempt}").touch()
    while not (folder / "gate").exists():
        time.sleep(0.01)
    return "done"


def test_a_worker_that_kills_its_horses_goes_on(session, fleet, tmp_path):
    worker = fleet.start("low", "-n", "me").up()
    q = nbqueue.Queue("low")
    job = q.enqueue(held, tmp_path, retry=1)
    eventually((tmp_path / "run 1").exists)
    nbqueue.send_kill_horse_command(None, "me")
    eventually((tmp_path / "run 2").exists)
    nbqueue.send_kill_horse_command(None, "me")
    with pytest.raises(nbqueue.JobFailed, match="its process was killed, as its worker was told to"):
        job.wait(20)
    assert [run.type for run in job.results()] == ["failed", "failed"]
    assert job.cause == "crashed"
    assert "told to kill what runs" in worker.log
    (tmp_path / "gate").touch()
    assert job.requeue().wait(20) == "done"
    nbqueue.send_kill_horse_command(None, "me")
    assert q.enqueue(f, "a b").wait(20) == 2


@pytest.mark.parametrize("name", ["emails:high", "my queue", "q/1", "größe"])
def test_a_queue_may_be_called_as_in_rq(session, fleet, name):
    q = nbqueue.Queue(name)
    job = q.enqueue(f, "a b c")
    fleet.start(name, "--burst").process.wait(30)
    assert job.wait(20) == 3
    assert nbqueue.Queue.all() == [q]
    for wrong in ("a,b", "*", " a", "", "a\nb"):
        with pytest.raises(ValueError, match="cannot be used"):
            nbqueue.Queue(wrong)


def test_hooks_that_nobody_would_call_are_refused():
    with pytest.raises(nbqueue.NbqueueError, match="perform_job would never be called"):

        class Mine(nbqueue.Worker):
            def perform_job(self, *given):
                return bool(given)

    class Fine(nbqueue.Worker):
        def work(self, *args, **kwargs):
            return super().work(*args, **kwargs)


def wants_meta(x, meta=None):
    return x, meta


def test_the_way_out_of_a_clash_is_rqs_own(session, fleet):
    q = nbqueue.Queue("low")
    with pytest.raises(nbqueue.NbqueueError, match=r"kwargs=\{'meta'"):
        q.enqueue(wants_meta, 1, meta={"a": 1})
    job = q.enqueue(wants_meta, args=(1,), kwargs={"meta": "mine"}, meta={"a": 1})
    fleet.start("low").up()
    assert (job.wait(20), job.get_meta()) == ([1, "mine"], {"a": 1}) or job.wait(20) == (1, "mine")


def test_what_has_waited_too_long_is_not_counted_where_no_worker_is_up(session):
    q = nbqueue.Queue("low")
    job = q.enqueue(f, "a", ttl=0.05)
    stays = q.enqueue(f, "b")
    eventually(lambda: q.job_ids == [stays.id])
    assert (len(q), q.jobs, job.get_status()) == (1, [stays], "canceled")


def test_at_once_needs_no_home_and_what_has_its_time_waits(server, session, home):
    connection = Redis.from_url(server.url)
    q = nbqueue.Queue("low", connection=connection, is_async=False, namespace=session.settings.namespace)
    assert q.enqueue(f, "a b").result == 2
    assert q.enqueue_in(60, f, "a b").get_status() == "scheduled"
    connection.close()
    script = "import nbqueue; print(nbqueue.Queue(is_async=False).enqueue(len, 'abc').result)"
    env = {name: value for name, value in os.environ.items() if name != "NBQUEUE_SECRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env | {"NBQUEUE_HOME": "/proc/none", "NBQUEUE_SPOOL": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "3\n", done.stderr


def test_without_a_home_a_secret_will_do(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("NBQUEUE_HOME", raising=False)
    monkeypatch.delenv("NBQUEUE_SECRET", raising=False)
    with pytest.raises(nbqueue.NbqueueError, match="NBQUEUE_SECRET"):
        settings.load()
    monkeypatch.setenv("NBQUEUE_SECRET", "s" * 40)
    assert settings.load().home.name.startswith("nbqueue-")


def test_an_enqueue_that_finds_no_server_is_redis_pys_error_too(home):
    for kind in (redis.exceptions.ConnectionError, redis.exceptions.RedisError, ConnectionError, nbqueue.NbqueueError):
        with pytest.raises(kind) as caught:
            nbqueue.Queue(connection=Redis(port=1)).enqueue(f, "a")
        assert "No Redis server answers" in str(caught.value)
        assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)


def test_rqs_options_of_the_command(session, fleet, tmp_path):
    pid = tmp_path / "pid"
    words = ("--with-scheduler", "-v", "--results-ttl", "5", "--max-idle-time", "60", "--logging_level", "INFO")
    words += ("--dequeue-strategy", "default", "--sentry-dsn", "https://key@sentry.example/1")
    worker = fleet.start("low", *words, "--pid", str(pid)).up()
    assert int(pid.read_text()) == worker.pid
    assert "--with-scheduler changes nothing here: every worker is a scheduler too" in worker.log
    assert "--results-ttl changes nothing" in worker.log
    assert "--sentry-dsn changes nothing here: call sentry_sdk.init in a module" in worker.log


def test_rqs_own_address_is_tried_last(server, home):
    env = {**os.environ, "RQ_REDIS_URL": server.url}
    told = subprocess.run(
        [sys.executable, "-m", "nbqueue", "info"], env=env, capture_output=True, text=True, timeout=60
    )
    assert server.url in told.stdout.replace("\n", "") + told.stderr
