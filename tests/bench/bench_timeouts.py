"""How long a job lives past its time limit: some that Python can interrupt, and some in C code that it cannot.

    python tests/bench/bench_timeouts.py [RUNS]

Starts a server and a worker of its own. Prints the seconds from the limit to the end of the process, with the default
grace of 2 s.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LIMIT = 1.0


def sleeps_in_python(path):
    _note(path)
    time.sleep(60)


def sleeps_in_c(path):
    import ctypes
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    _note(path)
    ctypes.CDLL(None).sleep(60)  # any signal ends it, and Python goes on


def waits_in_c(path):
    import ctypes

    _note(path)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second time for ever, whatever signal comes
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def blocks_all_signals(path):
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _note(path)
    time.sleep(60)


def _note(path):
    Path(path).write_text(f"{os.getpid()} {time.monotonic()}")


def overtime(function, folder, number):
    """Seconds from the limit to the end of the process."""
    import nbqueue
    from nbqueue.client.batch import Batch

    path = folder / f"{function.__name__}{number}"
    job = nbqueue.options(timeout=LIMIT).submit(function, str(path))
    while not path.exists() or not path.read_text():
        time.sleep(0.001)
    pid, began = path.read_text().split()
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.001)
    past = time.monotonic() - float(began) - LIMIT
    Batch(job.batch).wait(10)
    assert job.outcome.cause == "timeout", job.outcome
    return past


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    folder = Path(tempfile.mkdtemp(prefix="nbq-"))
    os.environ |= {"NBQUEUE_HOME": str(folder / "home"), "NBQUEUE_PROGRESS": "0", "NBQUEUE_SPOOL": "0"}
    (folder / "home").mkdir(mode=0o700)
    from fleet import Fleet

    import nbqueue
    from nbqueue.store import server as program

    server = program.start(folder)
    nbqueue.connect(server.url)
    fleet = Fleet(server.url, "nbq", folder / "home")
    fleet.start(slots=1, lease=30, beat=5).up()
    for function in (sleeps_in_python, sleeps_in_c, waits_in_c, blocks_all_signals):
        found = [overtime(function, folder, number) for number in range(runs)]
        print(f"{function.__name__}: median {statistics.median(found):.3f} s, most {max(found):.3f} s, {runs} runs")
    fleet.close()
    program.stop(folder)


if __name__ == "__main__":
    main()
