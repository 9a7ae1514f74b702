"""Death certificates: each failed outcome names its cause and what is known; each kind of end has its own budget."""

import ctypes
import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from faults.test_worker import kill
from helpers import eventually

import nbqueue
from nbqueue.cli.main import cli
from nbqueue.client.batch import Batch
from nbqueue.model import Cause
from nbqueue.worker.certificate import Kills, Obituary


def above(levels):
    """The process that is this many levels above."""
    pid = os.getpid()
    for _ in range(levels):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def hangs(stubborn):
    if stubborn:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.CDLL(None).sleep(60)


ENDS = {  # kind -> what it does, its cause, a word of the error
    "error": (lambda: 1 / 0, Cause.ERROR, "ZeroDivisionError: division by zero"),
    "told": (lambda: time.sleep(60), Cause.TIMEOUT, "time limit of 1 s"),
    "killed": (lambda: hangs(True), Cause.TIMEOUT, "so it was killed"),
    "signal": (os.abort, Cause.CRASHED, "signal 6 (SIGABRT)"),
    "code": (lambda: os._exit(7), Cause.CRASHED, "exit code 7"),
    "lock": (threading.Lock, Cause.UNSERIALIZABLE, "cannot pickle"),
    "large": (lambda: bytes(3 << 20), Cause.TOO_LARGE, "max_result"),
}


def ends(kind):
    print("the last words of", kind)
    return ENDS[kind][0]()


def shown(session, job):
    words = ["show", job.id, "--url", session.settings.url, "--namespace", session.settings.namespace]
    return " ".join(CliRunner().invoke(cli, words).output.split())


def test_each_end_names_its_cause_and_all_that_is_known(session, fleet, witness):
    worker = fleet.start(lease=10).up()
    kinds = [kind for kind in ENDS if ENDS[kind][1] is not Cause.TIMEOUT]
    batch = nbqueue.options(max_result=1 << 20, isolate=True).map(ends, kinds)
    witness.watch(batch.id)
    assert batch.wait(120), worker.log
    late = nbqueue.options(timeout=1, grace=0.5, isolate=True).map(ends, [kind for kind in ENDS if kind not in kinds])
    assert late.wait(120), worker.log  # its function is loaded by now, which would count
    frame = nbqueue.gather([*batch, *late], meta=True)
    for (_, row), job in zip(frame.iterrows(), [*batch, *late], strict=True):
        kind = job.args[0]
        _, cause, word = ENDS[kind]
        assert (row["cause"], word in row["error"], row["attempt"]) == (str(cause), True, 1), (kind, row["error"])
        assert row["max_rss_mb"] > 1, kind
        assert row["cpu_s"] >= 0, kind
        assert row["host"], kind
        assert row["worker"] in worker.log, kind
        assert job.log == f"the last words of {kind}\n", kind
        text = shown(session, job)
        for fact in (f"cause {cause}", "attempt 1", "CPU ", "peak memory", f"host {row['host']}", job.log.strip()):
            assert fact in text, (kind, fact, text)
    assert batch.to_frame(meta=True)["exit_code"].tolist()[1:3] == [-6, 7]
    assert batch.failed.causes == Counter(str(ENDS[kind][1]) for kind in kinds)
    witness.check(batch.id, late.id)


def test_who_depended_names_its_parent(session, fleet):
    fleet.start().up()
    parent = nbqueue.submit(ends, "error")
    then = parent.then(len)
    behind = nbqueue.map(abs, [1, 2], depends_on=[parent])
    assert all(each.wait(60) for each in (Batch(parent.batch), Batch(then.batch), behind))
    said = f"canceled: {parent.id}, which it depends on, did not finish"
    assert (then.outcome.cause, then.error) == (Cause.DEPENDENCY, said)
    assert behind.to_frame()["error"].tolist() == [said] * 2
    assert said in shown(session, then)
    with pytest.raises(nbqueue.JobCanceled, match=parent.id):
        then.wait()


def by_attempt(path):
    """Waits, waits, raises, crashes, finishes."""
    attempt = nbqueue.get_current_job().attempt
    with Path(path).open("a") as file:
        file.write(f"{attempt} {above(2)}\n")
    if attempt <= 2:
        time.sleep(60)
    if attempt == 3:
        raise ValueError(attempt)
    if attempt == 4:
        ctypes.string_at(0)
    return attempt


def test_errors_and_crashes_use_up_retries_and_losses_and_giving_back_do_not(session, fleet, diary):
    job = nbqueue.options(retry=2).submit(by_attempt, str(diary.path))
    fleet.start("--grace", "0", slots=1).up()
    eventually(lambda: len(diary.lines) == 1)
    assert fleet.workers[0].stop() == 0  # given back
    second = fleet.start(slots=1, lease=1.0, beat=0.2).up()
    eventually(lambda: len(diary.lines) == 2)
    kill([second.pid, *second.tree()])  # lost
    fleet.start(slots=1, lease=1.0, beat=0.2).up()
    assert job.wait(90) == 5
    assert [line.split()[0] for line in diary.lines] == ["1", "2", "3", "4", "5"]
    assert [run.outcome.cause for run in job.results()] == [None, Cause.CRASHED, Cause.ERROR]


def writes_garbage(kind):
    """Finds the socket that its outcome goes through, and writes what is no frame of ours, or only looks like one."""
    if kind == "good":
        return os.getppid()
    head = {
        "short": b"\0\0\0\3\x14abc",
        "empty": b"\0\0\0\0\x14",
        "long": b"\xff\xff\xff\xff\x14",
        "echo": b"\0\0\0\1\x17x",
    }
    other = b"\0\0\0\x0d\x14" + bytes(12) + b"\0"  # the end of another call
    note = b"\0\0\0\x0a\x15" + b"\xff" * 8 + b"\1\x80"  # meta of a job that is another's
    data = {**head, "other": other, "note": note}[kind]
    for fd in range(1000, 1100):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                sock.send(data)
        except OSError:
            continue
    time.sleep(60)
    raise TimeoutError(kind)


def test_who_writes_into_the_socket_of_its_outcome_ends_alone(session, fleet, witness):
    worker = fleet.start(slots=1).up()
    kinds = ["good", "short", "good", "empty", "long", "echo", "other", "note", "good"]
    batch = nbqueue.map(writes_garbage, kinds)
    assert batch.wait(120), worker.log
    assert (
        len({value for kind, value in zip(kinds, batch.results(errors="return"), strict=True) if kind == "good"}) == 1
    )
    for job in batch.failed:
        assert job.outcome.cause is Cause.CRASHED
        assert "wrote into the descriptor that its outcome is sent through" in job.error
    assert len(batch.failed) == 6
    assert "is ended" not in worker.log
    witness.check(batch.id)


# ---------------------------------------------------------------- whether the kernel killed for memory

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 3\noom 2\noom_kill {}\noom_group_kill 0\n"
OWN_V1 = "5:devices:/\n4:memory:/slurm/uid_7/job_3\n1:name=systemd:/\n0::/\n"
LAYOUTS = {  # what /proc/self/cgroup says, the files below /sys/fs/cgroup, what is counted
    "version 1": (OWN_V1, {"memory/slurm/uid_7/job_3": 4, "memory/slurm/uid_7": 9, "memory": 11}, 4),
    "version 1, a job made groups": (OWN_V1, {"memory/slurm/uid_7/job_3": 4, "memory/slurm/uid_7/job_3/a/b": 2}, 6),
    "version 1, in a container": ("4:cpu,memory:/docker/abc\n", {"memory": 3}, 3),
    "version 1, no group of ours": ("4:memory:/\n", {"memory": 3, "memory/another": 5}, 3),
    "version 2": ("0::/user.slice/a.scope\n", {"user.slice/a.scope": 6, "user.slice": 8}, 6),
    "version 2, in a container": ("0::/\n", {"": 2}, 2),
    "version 2, the host's path": ("0::/../../kubepods/pod1\n", {"": 7}, 7),
    "no group": ("0::/\n", {}, 21),
    "an old kernel": (OWN_V1, {"memory/slurm/uid_7/job_3": None}, 21),
    "no Linux": (None, {}, 0),
}


def laid_out(root, name):
    own, files, _ = LAYOUTS[name]
    for folder, count in files.items():
        newer = "0::" in own and "memory" not in own
        path = root / "sys/fs/cgroup" / folder / ("memory.events" if newer else "memory.oom_control")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("under_oom 0\n" if count is None else (V2 if newer else V1).format(count))
    if own is not None:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(own)
        (root / "proc/vmstat").write_text("oom_kill_not 99\noom_kill 21\n")
    return Kills(root)


@pytest.mark.parametrize("name", LAYOUTS)
def test_kills_for_memory_are_counted_where_we_are(tmp_path, name):
    assert laid_out(tmp_path, name).read() == LAYOUTS[name][2]


class Ended:
    """A mount as a certificate looks at it."""

    overdue = garbled = False

    def __init__(self, kills):
        self.kills = kills


def test_each_kill_for_memory_explains_one_death(tmp_path):
    kills = laid_out(tmp_path, "version 2, in a container")
    found = Obituary(kills)
    first, second, third = (Ended(kills.read()) for _ in range(3))
    events = tmp_path / "sys/fs/cgroup/memory.events"
    events.write_text(V2.format(4))  # two of three are killed at once, and then the third by hand
    causes = [found._judge(each, -signal.SIGKILL)[0] for each in (first, second, third)]
    assert causes == [Cause.OOM, Cause.OOM, Cause.CRASHED]
    events.write_text(V2.format(9))  # others in the group; then one begins, and is killed by hand
    assert found._judge(Ended(kills.read()), -signal.SIGKILL)[0] is Cause.CRASHED
