"""How fast the store's scripts are: run by hand, `python tests/bench/bench_store.py [SERVER PROGRAM]`.

Prints jobs a second through submit, claim and settle, and the bytes that a job takes in the server.
"""

from __future__ import annotations

import itertools
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from nbqueue.model import State
from nbqueue.store import server
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect
from nbqueue.store.records import Fitness, NewBatch, Settled

FIT = Fitness(keys=("aabbccdd",), python="3.11", host="here")
JOBS = 200_000
SINGLES = 10_000
NUMBERS = itertools.count(1)  # of claims: one that is not higher than the last is taken for a late one


def new_batch(name: str, *, single: bool = False) -> NewBatch:
    return NewBatch(
        id=name,
        queue="default",
        session="s1",
        nonce=secrets.token_hex(8),
        spec=b"s" * 150,
        function=b"f" * 500,
        key="k1",
        signer="aabbccdd",
        python="3.11",
        host="here",
        result_ttl=600,
        failure_ttl=600,
        single=single,
    )


def used(broker: Broker) -> int:
    return int(broker.client.info("memory")["used_memory"])


def drain(broker: Broker, size: int) -> tuple[float, float]:
    claiming = settling = 0.0
    blob = b"o" * 100
    for number in NUMBERS:
        at = time.perf_counter()
        claimed = broker.claim("w1", f"w1:{number}", ["default"], free=size, want=size, fit=FIT)
        claiming += time.perf_counter() - at
        if not claimed.grants:
            return claiming, settling
        settled = [
            Settled(grant.batch, job.index, grant.token, State.FINISHED, blob)
            for grant in claimed.grants
            for job in grant.jobs
        ]
        at = time.perf_counter()
        broker.settle("w1", settled)
        settling += time.perf_counter() - at
    raise AssertionError


def main(program: str | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="nbqueue-bench-"))
    place = server.start(folder, program=program)
    try:
        broker = Broker(connect(place.url), "bench")
        broker.join("w1", b"info", ["default"], 2)
        for size in (1000, 30, 2):
            jobs = JOBS if size == 1000 else JOBS // 10
            before = used(broker)
            args = [b"a" * 35 for _ in range(jobs)]
            at = time.perf_counter()
            broker.submit(new_batch(f"b{size}"), args, last=True)
            sent = time.perf_counter() - at
            claiming, settling = drain(broker, size)
            print(
                f"claims of {size:>4}: submit {jobs / sent:>9,.0f}/s, claim {jobs / claiming:>9,.0f}/s, "
                f"settle {jobs / settling:>9,.0f}/s, claim + settle {jobs / (claiming + settling):>9,.0f}/s, "
                f"{(used(broker) - before) / jobs:,.0f} bytes a job"
            )
        before = used(broker)
        at = time.perf_counter()
        for number in range(SINGLES):
            broker.submit(new_batch(f"s{number}", single=True), [b"a" * 35], last=True)
        sent = time.perf_counter() - at
        claiming, settling = drain(broker, 64)
        print(
            f"singles, 64 a claim: submit {SINGLES / sent:,.0f}/s, claim {SINGLES / claiming:,.0f}/s, "
            f"settle {SINGLES / settling:,.0f}/s, {(used(broker) - before) / SINGLES:,.0f} bytes a job"
        )
    finally:
        server.stop(folder)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
