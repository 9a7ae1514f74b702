"""What all tests use: waiting for something to become true, and small batches."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nbqueue.model import State
from nbqueue.store.broker import Broker
from nbqueue.store.keys import PERMANENT, PERMANENT_BY_QUEUE
from nbqueue.store.records import Claimed, Fitness, Lease, NewBatch, Settled

T = TypeVar("T")
FIT = Fitness(keys=("aabbccdd",), python="3.11", host="here")


def wait_until(predicate: Callable[[], T], seconds: float = 10, every: float = 0.005) -> T:
    """The first true answer of `predicate`; fails when there is none in time."""
    until = time.monotonic() + seconds
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > until:
            message = f"not true after {seconds} s: {predicate}"
            raise AssertionError(message)
        time.sleep(every)


def eventually(predicate: Callable[[], T], seconds: float = 60) -> T:
    """As `wait_until`, for what takes long on a loaded machine."""
    return wait_until(predicate, seconds)


def new_batch(batch: str = "b1", **changes: Any) -> NewBatch:
    facts: dict[str, Any] = {
        "id": batch,
        "queue": "default",
        "session": "s1",
        "nonce": secrets.token_hex(8),
        "spec": b"the spec",
        "function": b"the function",
        "key": "k1",
        "signer": "aabbccdd",
        "python": "3.11",
        "host": "here",
        "result_ttl": 60.0,
        "failure_ttl": 600.0,
    }
    return NewBatch(**(facts | changes))


def submit(broker: Broker, batch: str = "b1", n: int = 4, *, last: bool = True, **changes: Any) -> NewBatch:
    new = new_batch(batch, **changes)
    broker.submit(new, [b"arg%d" % index for index in range(n)], last=last)
    return new


def join(broker: Broker, worker: str = "w1", slots: int = 2, queues: Sequence[str] = ("default",), **times: Any) -> str:
    broker.join(worker, b"info of " + worker.encode(), queues, slots, **times)
    return worker


_count = 0


def claim(broker: Broker, worker: str = "w1", want: int = 1000, **changes: Any) -> Claimed:
    """A claim with a token of its own, of all that may be had."""
    global _count  # noqa: PLW0603
    _count += 1
    facts: dict[str, Any] = {"free": want, "want": want, "fit": FIT} | changes
    token = facts.pop("token", f"{worker}:{_count}")
    return broker.claim(worker, token, facts.pop("queues", ["default"]), **facts)


def leases(claimed: Claimed) -> list[Lease]:
    return [Lease(grant.batch, job.index, grant.token) for grant in claimed.grants for job in grant.jobs]


def ended(lease: Lease, state: State = State.FINISHED, blob: bytes = b"sealed", tail: bytes = b"") -> Settled:
    return Settled(lease.batch, lease.index, lease.token, state, blob, tail)


def finish_all(broker: Broker, worker: str = "w1", state: State = State.FINISHED) -> int:
    """Runs whatever can be claimed; answers how many jobs that were."""
    number = 0
    while taken := leases(claim(broker, worker)):
        assert set(broker.settle(worker, [ended(lease, state) for lease in taken])) == {"OK"}
        number += len(taken)
    return number


def expire(broker: Broker, worker: str) -> None:
    """Lets a worker's lease end now, as if it had been silent for long, while others renewed."""
    # By a script that begins as ours do, so that it passes on a full server too.
    text = "redis.call('DEL', KEYS[2]) return redis.call('ZADD', KEYS[1], 1, ARGV[1])"
    broker.client.eval(text, 2, broker.keys.at("workers"), broker.keys.at("room"), worker)


def flush(broker: Broker) -> None:
    """Removes all keys of the namespace, as a server does that forgets."""
    if keys := list(broker.client.scan_iter(match=broker.keys.prefix + "*", count=1000)):
        broker.client.unlink(*keys)


def leaks(broker: Broker) -> list[str]:
    """Keys of the namespace that would stay for ever."""
    prefix = broker.keys.prefix
    living = {worker.decode() for worker in broker.client.zrange(broker.keys.at("workers"), 0, -1)}
    views = broker.batches()
    kin = {view.id: broker.client.scard(broker.keys.part(view.id, "kin")) for view in views}
    running = {view.id: view.name for view in views if not view.done or kin[view.id]}
    found = []
    for key in broker.client.scan_iter(match=prefix + "*", count=1000):
        name = key.decode().removeprefix(prefix)
        kind, _, rest = name.partition(":")
        if name in PERMANENT or name.startswith(PERMANENT_BY_QUEUE):
            continue
        if broker.client.pttl(key) != -1:
            continue
        if kind == "b" and rest.partition(":")[0] in running:
            continue
        if kind == "name" and rest in running.values():
            continue
        if kind in ("w", "held", "claim", "mail") and rest in living:
            continue
        if kind == "slots" and {worker.decode() for worker in broker.client.hkeys(key)} <= living:
            continue
        found.append(name)
    return found
