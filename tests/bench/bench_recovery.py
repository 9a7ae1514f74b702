"""Seconds from a dead node to its jobs running again: run by hand, `python tests/bench/bench_recovery.py [ROUNDS]`.

A node dies when every process of its worker gets SIGKILL at once. Its jobs are begun again by another live worker, or
by one that is started then or a little later: where nobody at all renewed for 1.5 beats, reap waits one lease more,
since that may have been a pause of the server. With the default lease (30 s) a round takes two minutes.
"""

import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fleet import Fleet
from helpers import wait_until

import nbqueue
from nbqueue.store import server

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
LEASES = ((2.0, 0.4), (30.0, 5.0))


def noted(path, seconds):
    with Path(path).open("a") as file:
        file.write(f"{time.monotonic()}\n")
    # Suspects of a loss run half as many at a time as before: a second run that lasts would keep the others waiting.
    time.sleep(seconds if nbqueue.get_current_job().attempt == 1 else 0)


def lines(path):
    return [float(line) for line in path.read_text().splitlines()]


WHO = {"another live worker": None, "one started at that moment": 0.0, "one started two beats later": 2.0}


def dies(fleet, path, times, beats):
    """From SIGKILL to the first and the last of its two jobs that runs again; another worker starts `beats` later."""
    path.write_text("")
    first = fleet.start(slots=2, lease=times[0], beat=times[1]).up()
    batch = nbqueue.starmap(noted, [(str(path), 600)] * 2)
    wait_until(lambda: len(lines(path)) == 2, 30)
    if beats is None:
        fleet.start(slots=2, lease=times[0], beat=times[1]).up()
    for pid in [first.pid, *first.tree()]:
        os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    if beats is not None:
        time.sleep(beats * times[1])
        fleet.start(slots=2, lease=times[0], beat=times[1])
    wait_until(lambda: len(lines(path)) == 4, 300)
    again = [when - died for when in lines(path)[2:]]
    batch.wait(60)
    for worker in fleet.workers:
        worker.end()
    fleet.workers.clear()
    return min(again), max(again)


def main():
    with tempfile.TemporaryDirectory(prefix="nbq-") as home:
        os.environ |= {"NBQUEUE_HOME": home, "NBQUEUE_PROGRESS": "0", "NBQUEUE_SPOOL": "0"}
        place = server.start(Path(home) / "server")
        session = nbqueue.connect(place.url)
        fleet = Fleet(place.url, session.settings.namespace, home)
        try:
            for times, (who, beats) in itertools.product(LEASES, WHO.items()):
                rounds = [dies(fleet, Path(home) / "diary", times, beats) for _ in range(ROUNDS)]
                first, last = (statistics.median(each) for each in zip(*rounds, strict=True))
                print(f"lease {times[0]:g} s, beat {times[1]:g} s, {who}: first {first:.1f} s, all {last:.1f} s")
        finally:
            for worker in fleet.workers:
                worker.end()
            session.collector.stop()
            server.stop(Path(home) / "server")


if __name__ == "__main__":
    main()
