"""Whether a worker's memory stays flat: run by hand, `python tests/bench/bench_memory.py [JOBS]`.

Prints the resident memory of the parent and of its stables at first, and after each part of the work: batches of 10,000
and then single jobs, on a private server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["NBQUEUE_PROGRESS"] = "0"
FOLDER = Path(tempfile.mkdtemp(prefix="nbqueue-bench-"))
os.environ["NBQUEUE_HOME"] = str(FOLDER / "home")
os.environ["NBQUEUE_SPOOL"] = "0"

import nbqueue  # noqa: E402 - it reads the environment
from nbqueue.store import server  # noqa: E402
from nbqueue.worker.marks import carriers  # noqa: E402

PART = 10_000


def job(x: int) -> int:
    return x + 1


def rss(pid: int) -> float:
    """Resident memory in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def show(what: str, worker: int) -> None:
    below = [f"{rss(pid):.1f}" for pid, mark in carriers() if f"/{worker}/" in mark and pid != worker]
    print(f"{what:>28}: parent {rss(worker):6.1f} MB, below it {' '.join(below)} MB", flush=True)


def main(jobs: int) -> None:
    running = server.start(FOLDER / "server")
    nbqueue.connect(running.url)
    command = [sys.executable, "-m", "nbqueue", "worker", "--quiet", "--slots", "2", "--url", running.url]
    worker = subprocess.Popen(command)
    try:
        nbqueue.map(job, range(100)).wait()
        show("after 100 jobs", worker.pid)
        for number in range(1, jobs // PART + 1):
            nbqueue.map(job, range(PART)).wait()
            show(f"after {number * PART:,} jobs", worker.pid)
        queue = nbqueue.Queue()
        for number in range(1, 5):
            nbqueue.gather([queue.enqueue(job, i) for i in range(5_000)])
            show(f"and {number * 5_000:,} single ones", worker.pid)
    finally:
        worker.terminate()
        worker.wait()
        server.stop(FOLDER / "server")
        shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
