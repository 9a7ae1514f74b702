"""How many calls a second one stable with two slots makes: `python tests/bench/bench_stable.py`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "worker")]
from stable_driver import Driver  # noqa: E402 - found by the line above

from nbqueue import perform  # noqa: E402
from nbqueue.worker import frames  # noqa: E402


def same(x):
    return x


def measure(name: str, jobs: int, chunk: int, *, isolate: bool = False, slots: int = 2) -> None:
    with Driver(same) as driver:
        driver.until(lambda: driver.ready is not None)
        payload = perform.pack((1,), {})
        runs = []
        for start in range(0, jobs, chunk):
            facts = {"timeout": None, "grace": 2.0, "slice": 0.1, "max_result": 1 << 26, "seed": None}
            batch = [frames.Job(seq, seq, 1, payload) for seq in range(start, min(jobs, start + chunk))]
            slot = start // chunk % slots
            runs.append(frames.encode(frames.Run(slot, "b", "f", isolate, jobs=batch, **facts)))
        began, done = time.perf_counter(), 0
        for run in runs:
            driver.channel.send(frames.RUN, run)
        while done < jobs:
            driver.channel.flush()
            driver_wait(driver)
            done += sum(kind == frames.DONE for kind, _, _ in driver.channel.receive())
        spent = time.perf_counter() - began
        print(f"{name:30} {jobs / spent:10,.0f} calls/s")


def driver_wait(driver: Driver) -> None:
    import select

    select.select([driver.channel], [driver.channel] if driver.channel.wants_write else [], [], 1)


if __name__ == "__main__":
    measure("RUNs of 1000", 100_000, 1000)
    measure("RUNs of 500", 100_000, 500)
    measure("RUNs of 100", 50_000, 100)
    measure("RUNs of 1", 20_000, 1)
    measure("isolate", 3_000, 500, isolate=True)
