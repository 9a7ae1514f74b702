"""What the monkey's jobs do. A job writes its runs into the witness's diary, and returns what can be foreseen."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LONG = 0.12  # seconds from which on a run also notes that it goes on
BEAT = 0.05  # as the witness has it

# What becomes of a job of each kind, if nothing is done to it: its state, and its cause.
ENDS = {
    "ok": ("finished", None),
    "big": ("finished", None),
    "huge": ("finished", None),
    "loud": ("finished", None),
    "meta": ("finished", None),
    "children": ("finished", None),
    "flaky": ("finished", None),
    "mend": ("finished", None),
    "fail": ("failed", "error"),
    "segv": ("failed", "crashed"),
    "exit": ("failed", "crashed"),
    "kill": ("failed", "crashed"),
    "late": ("failed", "timeout"),
    "stubborn": ("failed", "timeout"),
    "poison": ("failed", "lost"),
}


def value(kind, x):
    """What such a job returns."""
    if kind == "big":
        return b"%d." % x * 9_000
    if kind == "huge":
        return b"%d." % x * 400_000
    return 3 * x + 1


class Diary:
    """As the witness's own notes, but without a thread where the run is short."""

    def __init__(self, folder, seconds):
        import nbqueue

        self.job = job = nbqueue.get_current_job()
        self.who = f"{job.batch} {job.index} {job.attempt} {os.environ.get('NBQUEUE_MARK', '-')} {os.getpid()}"
        self.file = os.open(Path(folder, "witness"), os.O_WRONLY | os.O_APPEND)
        self.seconds = seconds

    def note(self, word):
        os.write(self.file, f"{word} {time.monotonic()} {self.who}\n".encode())

    def __enter__(self):
        self.note("begin")
        return self

    def spend(self):
        """Takes the job's time, with a line now and then."""
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, BEAT))
            if self.seconds > LONG:
                self.note("beat")

    def __exit__(self, *_):
        self.note("end")
        os.close(self.file)


def play(folder, flow, kind, seconds, x):
    """One job of a kind."""
    with Diary(folder, seconds) as diary:
        diary.spend()
        act = ACTS.get(kind)
        if act is not None:
            act(folder, flow, diary, x)
        return value(kind, x)


def after(folder, before):
    """Job i of a batch that follows another: takes the result of job i there."""
    with Diary(folder, 0.01) as diary:
        diary.spend()
        return before + 1


def teller(folder, word):
    """A callback that notes whose end it was told."""

    def tell(job, _connection, *_):
        with Path(folder, "callbacks").open("a") as file:
            file.write(f"{word} {job.id}\n")

    return tell


# ---------------------------------------------------------------- what goes wrong, or is special


def _fail(_folder, _flow, _diary, x):
    raise ValueError(f"no {x} today")


def _flaky(_folder, _flow, diary, x):
    if diary.job.attempt <= 2:
        raise ConnectionError(f"{x} is not there yet")


def _mend(folder, flow, _diary, x):
    if not Path(folder, f"mended-{flow}").exists():
        raise LookupError(f"{x} is broken")


def _segv(*_):
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(30)


def _exit(*_):
    os._exit(3)


def _kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)


def _late(*_):
    time.sleep(60)


def _stubborn(*_):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


def _poison(*_):
    """Kills the worker that runs it."""
    os.kill(int(os.environ["NBQUEUE_MARK"].split("/")[1]), signal.SIGKILL)
    time.sleep(60)


def _children(*_):
    """Leaves processes behind, one of them in a session of its own."""
    words = [sys.executable, "-S", "-c", "import time; time.sleep(100)"]
    subprocess.Popen(words, stdout=subprocess.DEVNULL)
    subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL)


def _loud(_folder, _flow, _diary, x):
    print(f"line of {x}\n" * 4000)


def _meta(_folder, _flow, diary, x):
    import nbqueue

    for done in range(4):
        nbqueue.progress(done, 3)
        diary.job.meta["x"] = done
        diary.job.save_meta()
    diary.job.meta["x"] = x
    diary.job.save_meta()


ACTS = {
    "fail": _fail,
    "flaky": _flaky,
    "mend": _mend,
    "segv": _segv,
    "exit": _exit,
    "kill": _kill,
    "late": _late,
    "stubborn": _stubborn,
    "poison": _poison,
    "children": _children,
    "loud": _loud,
    "meta": _meta,
}
