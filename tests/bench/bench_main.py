"""The main job's numbers: calls a second, forks a second, Redis bytes a job, import time. Run by hand:

    python tests/bench/bench_main.py [CALLS] [ROUNDS]

Two slots on a private server; medians of ROUNDS rounds in one run. Calls are counted from `map` to the last result.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbqueue
from nbqueue.store import server

CALLS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5


def nothing(value):
    return value


@contextlib.contextmanager
def two_slots():
    with tempfile.TemporaryDirectory(prefix="nbq-") as home:
        os.environ |= {"NBQUEUE_HOME": home, "NBQUEUE_PROGRESS": "0"}
        running = server.start(Path(home) / "server")
        session = nbqueue.connect(running.url)
        words = [sys.executable, "-m", "nbqueue", "worker", "--quiet", "--slots", "2", "--url", running.url]
        worker = subprocess.Popen(words)
        try:
            nbqueue.map(nothing, range(100)).wait()
            yield session
        finally:
            worker.terminate()
            worker.wait()
            server.stop(Path(home) / "server")


def rate(verb, n):
    began = time.perf_counter()
    batch = verb.map(nothing, range(n))
    mapped = time.perf_counter() - began
    assert batch.wait()
    seconds = time.perf_counter() - began
    assert sum(batch.results()) == n * (n - 1) // 2
    batch.forget()
    return n / seconds, mapped


def bytes_a_job(session, n=20_000):
    info = session.broker.client.info
    before = info("memory")["used_memory"]
    batch = nbqueue.map(nothing, range(n))
    batch.wait()
    used = info("memory")["used_memory"] - before
    batch.forget()
    return used / n


def import_ms(code):
    words = [sys.executable, "-c", f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"]
    return 1e3 * float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def point(value):
    return {"x": value, "half": value / 2}


def frame_seconds(n, function, **options):
    batch = nbqueue.map(function, range(n))
    batch.wait()
    began = time.perf_counter()
    batch.to_frame(**options)
    seconds = time.perf_counter() - began
    batch.forget()
    return seconds


def main():
    with two_slots() as session:
        shared = [rate(nbqueue, CALLS) for _ in range(ROUNDS)]
        forked = [rate(nbqueue.options(isolate=True), max(200, CALLS // 50))[0] for _ in range(ROUNDS)]
        print(f"no-op calls/s            {statistics.median(calls for calls, _ in shared):10,.0f}")
        print(f"the same, isolate        {statistics.median(forked):10,.0f}")
        print(f"map of {CALLS:,} returns   {statistics.median(mapped for _, mapped in shared):10.2f} s")
        print(f"Redis bytes a job        {bytes_a_job(session):10,.0f}")
        print(f"to_frame of {CALLS:,}      {frame_seconds(CALLS, nothing):10.2f} s")
        print(f"the same, of dicts       {frame_seconds(CALLS, point):10.2f} s")
        print(f"the same, meta=True      {frame_seconds(CALLS, nothing, meta=True):10.2f} s")
    for code in ("import nbqueue", "import nbqueue; nbqueue.map"):
        print(f"{code:<34}{statistics.median(import_ms(code) for _ in range(9)):10.1f} ms")


if __name__ == "__main__":
    main()
