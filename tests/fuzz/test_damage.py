"""Garbage at each key and in each field of a batch, met by each verb.

No verb fails with an error of Lua's, other batches go on, and once the damage is repaired no job is missing.
"""

from __future__ import annotations

import pytest
from fuzz import spoil
from helpers import claim, ended, expire, join, leases, submit

from nbqueue.errors import NbqueueError, ServerRefused
from nbqueue.model import State
from nbqueue.store.records import Need

N = 6
# Other content of the same shape: leases and holes that look like ours, and a batch that is another one.
LIKE_OURS = {"run hash", "skip set", "void set", "b hash"}


def met(act, *facts):
    """What `act` answers; an error must be one of ours that says what is wrong."""
    try:
        return act(*facts)
    except NbqueueError as why:
        if isinstance(why, ServerRefused) and why.facts.get("kind") is None:
            raise
        return why


def started(broker, batch):
    """A batch with a job that failed, one that finished, one handed back, two that run, and one that waits."""
    submit(broker, batch, n=N, name=f"name {batch}")
    held = leases(claim(broker, "w1", want=5))
    broker.settle("w1", [ended(held[0], State.FAILED), ended(held[1])])
    broker.release("w1", held[4:])
    return held[2:4]


VERBS = {
    "claim": lambda broker, batch, held: leases(claim(broker, "w1", want=1)),
    "settle": lambda broker, batch, held: broker.settle("w1", [ended(lease) for lease in held]),
    "release": lambda broker, batch, held: broker.release("w1", held, begun=frozenset(held[:1])),
    "unfit": lambda broker, batch, held: broker.release("w1", held, unfit=True),
    "renew": lambda broker, batch, held: broker.renew("w1", held),
    "leave": lambda broker, batch, held: broker.leave("w1"),
    "reap": lambda broker, batch, held: (expire(broker, "w1"), broker.reap()),
    "promote": lambda broker, batch, held: broker.promote(),
    "cancel": lambda broker, batch, held: broker.cancel(batch, [5]),
    "retry": lambda broker, batch, held: broker.retry(batch, [(0, 1)], nonce="again"),
    "save": lambda broker, batch, held: broker.save(batch, 2, b"meta"),
    "rename": lambda broker, batch, held: broker.rename(batch, f"name {batch}", "another"),
    "forget": lambda broker, batch, held: broker.forget(batch),
    "extend": lambda broker, batch, held: broker.extend(batch, N, [b"more"], nonce="more", last=True),
    "follow": lambda broker, batch, held: broker.follow([(batch, 0)]),
    "depend": lambda broker, batch, held: submit(broker, f"{batch}.d", n=1, queue="then", needs=[Need(batch, None)]),
}


class Damage:
    """One way in which a batch was damaged, which can be undone unless a verb has written over it."""

    def __init__(self, client, key, batch, name, way):
        self._client = client
        self._field = name.split()[1] if name.startswith("field ") else None
        self._key = key
        before = self._state()
        way(batch)
        self._damaged = self._state()
        self._before = {each: before.get(each) for each in self._damaged.keys() | before if self._differs(before, each)}

    def _state(self):
        if self._field:
            return {self._field: self._client.hget(self._key, self._field)}
        keys = self._client.scan_iter(match=f"{self._key}*", count=1000)
        return {key: self._client.dump(key) for key in keys}

    def _differs(self, before, each):
        return before.get(each) != self._damaged.get(each)

    def undo(self):
        """Whether it could be undone."""
        now = self._state()
        if any(now.get(each) != self._damaged.get(each) for each in self._before):
            return False
        for each, content in self._before.items():
            if self._field:
                self._client.hdel(self._key, each)
                if content is not None:
                    self._client.hset(self._key, each, content)
                continue
            self._client.delete(each)
            if content is not None:
                self._client.restore(each, 0, content)
        return True


def served(broker, batch, worker, turns=1000):
    """How many jobs of a batch a worker settles; what a damaged one does not take it gives back, as workers do."""
    number, more = 0, ""
    join(broker, worker, slots=100)
    for _ in range(turns):
        claimed = claim(broker, worker, more=more)
        some, more = leases(claimed), claimed.more
        if not (some or more):
            break
        answers = broker.settle(worker, [ended(lease) for lease in some])
        broker.release(worker, [lease for lease, answer in zip(some, answers, strict=True) if answer == "DAMAGED"])
        number += sum(lease.batch == batch for lease in some)
    return number


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_meets_each_kind_of_damage(broker, verb):
    found, undone = [], 0
    ways = list(spoil.ways(broker).items())
    mine = ways if spoil.ALL else ways[list(VERBS).index(verb) % 3 :: 3]  # each way meets some verbs
    for place, (name, way) in enumerate(mine):
        batch, good = f"b{place}", f"good{place}"
        join(broker, "w1", slots=100)
        held = started(broker, batch)
        damage = Damage(broker.client, broker.keys.at("b", batch), batch, name, way)
        try:
            met(VERBS[verb], broker, batch, held)
            submit(broker, good, n=2)
            if (number := met(served, broker, good, "w2", 20)) != 2:
                found.append((name, "the good batch", number))
            if name not in LIKE_OURS and damage.undo():
                undone += 1
                for worker in ("w1", "w2"):
                    expire(broker, worker)
                broker.reap()
                broker.promote()
                served(broker, batch, "w3")
                view = broker.view(batch)
                if view is not None and view.tally.over != view.n:
                    found.append((name, "lost", str(view.tally)))
        except Exception as why:
            found.append((name, type(why).__name__, str(why)[:200]))
        broker.client.unlink(*broker.client.scan_iter(match=broker.keys.prefix + "*", count=1000))
    assert not found, "\n".join(map(str, found))
    assert undone > 5
