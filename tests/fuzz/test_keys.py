"""Garbage at each key of a living batch, of the right type of Redis and of the wrong ones.

Whoever reads that batch meets errors of ours; the worker lives, the reaper reaps, and other batches go on.
"""

from __future__ import annotations

import warnings

from click.testing import CliRunner
from fuzz import spoil
from helpers import claim, ended, expire, join, leases, submit, wait_until

import nbqueue
from nbqueue.cli.main import cli
from nbqueue.errors import NbqueueError

JOB = [
    "status", "outcome", "log", "results", "echoes", "meta", "progress", "get_position", "attempt", "worker_name",
    "args", "created_at", "enqueued_at", "started_at", "ended_at", "due_at", "exc_info", "error", "refresh", "stop",
]  # fmt: skip
READ = {"out", "past", "tail", "meta", "echo", "run", "log", "bad", "args", "marks", "fn", "field", "b"}
ONE = ["bell:default", "q:default", "open:default", "tally:default", "slots:default", "queues", "workers", "later"]
ONE += ["batches", "pulse", "epoch", "w:", "held:", "claim:", "mail:"]


def meets_only_ours(act):
    """The answer of `act`, or the error of ours that it met."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return act()
        except NbqueueError as why:
            return why


def look(batch_id):
    """All that a notebook may ask of a batch; afterwards it is canceled and forgotten."""
    batch = meets_only_ours(lambda: nbqueue.attach(batch_id))
    job = meets_only_ours(lambda: nbqueue.Job.fetch(f"{batch_id}:0"))
    if isinstance(batch, nbqueue.Batch):
        for act in (repr, len, lambda each: each.tally, lambda each: each.to_frame(wait=False, meta=True)):
            meets_only_ours(lambda act=act: act(batch))
    if isinstance(job, nbqueue.Job):
        for word in JOB:
            found = meets_only_ours(lambda word=word: getattr(job, word))
            if callable(found):
                meets_only_ours(found)
    if isinstance(batch, nbqueue.Batch):
        for verb in (batch.cancel, batch.retry, batch.forget):
            meets_only_ours(verb)


def look_at_all(session):
    meets_only_ours(nbqueue.batches)
    queue = nbqueue.Queue("default")
    for act in (lambda: queue.count, lambda: queue.jobs, lambda: queue.job_ids, nbqueue.Worker.all):
        meets_only_ours(act)
    server = ["--url", session.settings.url, "--namespace", session.settings.namespace]
    for words in (["info"], ["info", "--json"], ["batches"]):
        done = CliRunner().invoke(cli, [*words, *server])
        assert done.exception is None or isinstance(done.exception, NbqueueError), (words, done.exception)


def test_batches_that_wait(no_copy, session, fleet):
    made = []
    for way in spoil.ways(session.broker).values():
        made.append(nbqueue.map(abs, range(2)).id)
        way(made[-1])
    good = nbqueue.map(abs, range(20))
    worker = fleet.start().up()
    assert good.results(timeout=30) == list(range(20))
    look_at_all(session)
    for batch_id in made:
        look(batch_id)
    assert nbqueue.map(abs, range(20)).results(timeout=30) == list(range(20))
    assert worker.process.poll() is None
    assert "unexpected" not in worker.log
    assert worker.stop() == 0


def test_batches_that_are_done(no_copy, session, fleet):
    worker = fleet.start().up()
    for name, way in spoil.ways(session.broker).items():
        if name.split()[0] not in READ:
            continue
        batch = nbqueue.map(abs, range(2))
        batch.wait(30)
        way(batch.id)
        look(batch.id)
    look_at_all(session)
    assert nbqueue.map(abs, range(20)).results(timeout=30) == list(range(20))
    assert worker.process.poll() is None


def served(broker):
    """The jobs of the good batch that another worker is given."""
    join(broker, "w2", slots=1000)
    good = set()
    while some := leases(claim(broker, "w2")):
        answers = dict(zip(some, broker.settle("w2", [ended(lease) for lease in some]), strict=True))
        good |= {lease.index for lease in some if lease.batch == "good" and answers[lease] == "OK"}
    return good


def held_and_spoiled(broker, n):
    """A worker holds a good batch and many of `n` jobs, each of which is spoiled then; answers all its leases."""
    ways = spoil.ways(broker)
    join(broker, "w1", slots=1000)
    for place in range(len(ways)):
        submit(broker, f"b{place}", n=n)
    submit(broker, "good", n=3)
    held = []
    while some := leases(claim(broker, "w1")):
        held += some
    for place, way in enumerate(ways.values()):
        way(f"b{place}")
    return held


def test_the_reaper(broker):
    held_and_spoiled(broker, 2)
    expire(broker, "w1")
    wait_until(lambda: "w1" in broker.reap().workers, 10)
    assert served(broker) == {0, 1, 2}
    broker.promote()
    assert broker.leave("w2")
    broker.client.unlink(*broker.client.scan_iter(match=broker.keys.prefix + "*", count=1000))


def test_a_worker_gives_back_what_others_can_take(broker):
    held = held_and_spoiled(broker, 1)
    assert len(broker.renew("w1", held).fallen) < len(held)
    broker.release("w1", held)
    assert broker.leave("w1")
    assert served(broker) == {0, 1, 2}
    broker.client.unlink(*broker.client.scan_iter(match=broker.keys.prefix + "*", count=1000))


def test_keys_that_all_share(no_copy, session, fleet):
    worker = fleet.start(lease=5.0).up()
    client, keys = session.broker.client, session.broker.keys
    for name in ONE:
        own = nbqueue.Worker.all()[0].id if name.endswith(":") else ""
        key = keys.prefix + name + own
        for kind in ("string", "zset" if name not in {"workers", "later", "batches", "open:default"} else "hash"):
            spoil.key(client, key, kind)
            meets_only_ours(lambda: nbqueue.map(abs, range(3)))
            look_at_all(session)
            client.delete(key)
            assert worker.process.poll() is None, (name, kind, worker.log[-2000:])
            try:
                wait_until(lambda: serves(session), 30)
            except AssertionError:
                raise AssertionError((name, kind, worker.log[-2000:])) from None


def serves(session):
    """Whether a batch that is submitted now is run soon."""
    session.broker.client.delete(session.broker.keys.at("q", "default") + ".none")
    batch = meets_only_ours(lambda: nbqueue.map(abs, range(3)))
    return isinstance(batch, nbqueue.Batch) and meets_only_ours(lambda: batch.wait(5)) is True
