"""One job at a time, forked, from submit to result: nbqueue and RQ side by side, on one server, in turns.

    python tests/bench/bench_rq.py [JOBS] [ROUNDS]

Needs the extra `bench`. Both have one worker process that waits for work; the job does nothing; the client asks as fast
as it is answered. Prints medians in ms, and their ratio.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import rq
from redis import Redis

import nbqueue
from nbqueue.store import server as program

NOTHING = "operator.pos"  # by name: RQ takes no function of a script


@contextmanager
def worker(*words, env):
    log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 - as long as the worker
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, env=os.environ | env)
    yield
    process.terminate()
    process.wait(20)


def ours(queue, jobs):
    spent = []
    for i in range(jobs):
        begun = time.perf_counter()
        assert queue.enqueue(NOTHING, i).wait(30) == i
        spent.append(time.perf_counter() - begun)
    return spent


def theirs(queue, jobs):
    spent = []
    for i in range(jobs):
        begun = time.perf_counter()
        job = queue.enqueue(NOTHING, i)
        while (result := job.latest_result()) is None:
            time.sleep(0.0005)
        assert result.return_value == i
        spent.append(time.perf_counter() - begun)
    return spent


def main(jobs, rounds):
    folder = Path(tempfile.mkdtemp(prefix="nbq-"))
    running = program.start(folder)
    os.environ |= {"NBQUEUE_HOME": str(folder / "home"), "NBQUEUE_PROGRESS": "0", "NBQUEUE_URL": running.url}
    try:
        with (
            worker("nbqueue", "worker", "--isolate", "--slots", "1", env={}),
            worker("rq.cli", "worker", "--url", running.url, "other", env={}),
        ):
            mine, other = nbqueue.Queue(), rq.Queue("other", connection=Redis.from_url(running.url))
            ours(mine, 5)
            theirs(other, 5)
            table = [
                (statistics.median(ours(mine, jobs)), statistics.median(theirs(other, jobs))) for _ in range(rounds)
            ]
        for we, they in table:
            print(f"nbqueue {we * 1e3:7.2f} ms   RQ {they * 1e3:7.2f} ms   ratio {we / they:.2f}")
        we, they = (statistics.median(column) for column in zip(*table, strict=True))
        print(f"median: nbqueue {we * 1e3:.2f} ms, RQ {they * 1e3:.2f} ms, ratio {we / they:.2f}")
    finally:
        program.stop(folder)


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["50", "5"][len(sys.argv) - 1 :])[:2]))
