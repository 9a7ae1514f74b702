"""Bytes without a valid signature are refused, that job only; code that changed is never run as it was."""

import subprocess
import sys
import textwrap

import pytest
from helpers import wait_until

import nbqueue


def double(x):
    return 2 * x


def test_arguments_of_another_job_fail_that_job_only(session, fleet):
    batch = nbqueue.map(double, range(6))
    broker = session.broker
    args = broker.keys.part(batch.id, "args")
    broker.client.hset(args, 2, broker.client.hget(args, 3))
    broker.client.hset(args, 4, b"")
    fleet.start().up()
    assert batch.wait(20)
    assert [job.index for job in batch.failed] == [2, 4]
    assert {job.outcome.cause for job in batch.failed} == {"signature"}
    assert batch.results(errors="skip") == [0, 2, 6, 10]


def test_a_function_of_another_batch_is_not_run(session, fleet):
    first = nbqueue.map(double, range(2))
    second = nbqueue.map(abs, range(2))
    broker = session.broker
    broker.client.set(broker.keys.part(second.id, "fn"), broker.function(first.id))
    broker.client.hset(broker.keys.at("b", second.id), "key", broker.view(first.id).key)
    fleet.start().up()
    assert second.wait(20)
    assert {job.outcome.cause for job in second.failed} == {"signature"}
    assert first.results() == [0, 2]


def test_a_worker_without_the_key_leaves_the_batch_to_others(session, fleet, tmp_path):
    other = tmp_path / "other-home"
    stranger = fleet.start(env={"NBQUEUE_HOME": str(other)}).up()
    batch = nbqueue.map(double, range(3))
    wait_until(lambda: "waits for key" in stranger.log, 20)
    assert batch.tally.queued == 3
    fleet.start().up()
    assert batch.results() == [0, 2, 4]


def test_a_forged_outcome_is_refused(no_copy, session, anew, fleet):
    fleet.start().up()
    batch = nbqueue.map(double, range(3))
    assert batch.results() == [0, 2, 4]
    broker = session.broker
    out = broker.keys.part(batch.id, "out")
    broker.client.hset(out, 0, broker.client.hget(out, 1))
    again = anew(batch.id)
    with pytest.raises(nbqueue.NbqueueError, match="signature"):
        again[0].wait(5)
    assert again[2].wait(5) == 4


SCRIPT = textwrap.dedent("""
    import sys
    import nbqueue
    import mylib
    nbqueue.connect(sys.argv[1], namespace=sys.argv[2])
    print(nbqueue.map(mylib.answer, [1, 2]).results())
    print(nbqueue.map(lambda x: mylib.answer(x), [3]).results())
""")


def kernel(folder, session, source):
    """A fresh kernel in a folder with a module of the user's."""
    (folder / "mylib.py").write_text(source)
    (folder / "run.py").write_text(SCRIPT)
    words = [sys.executable, "run.py", session.settings.url, session.settings.namespace]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:2]


def test_an_edited_module_never_runs_as_old_code(session, fleet, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    fleet.start().up()
    assert kernel(folder, session, "def answer(x):\n    return x + 1\n") == ["[2, 3]", "[4]"]
    assert kernel(folder, session, "def answer(x):\n    return x + 100\n") == ["[101, 102]", "[103]"]
    assert kernel(folder, session, "def answer(x):\n    return x + 1\n") == ["[2, 3]", "[4]"]


def test_a_module_that_the_worker_lacks_is_named(session, fleet, tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    (folder / "vanishing.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(folder))
    import vanishing

    batch = nbqueue.map(vanishing.f, [1, 2])
    file, away = folder / "vanishing.py", folder / "away"
    file.rename(away)
    worker = fleet.start().up()
    wait_until(lambda: "vanishing" in worker.log, 20)
    assert not batch.wait(0.1), "it waits for a worker that has the module"
    wait_until(lambda: batch.tally.queued == 2, 20)
    free = nbqueue.map(vanishing.f, [1, 2], pin=False)
    assert free.wait(20)
    assert {job.outcome.cause for job in free.failed} == {"load"}
    assert "vanishing" in free.failed[0].error
    away.rename(file)
    fleet.start().up()
    assert batch.results() == [1, 2]
