"""The server pauses, dies, forgets, loads, fills up and refuses; each test has a server of its own."""

import contextlib
import os
import signal
import threading

import pytest
from grounds import LIMIT, free_port
from helpers import wait_until
from redis import exceptions as wrong

import nbqueue
from nbqueue.client.submit import upload
from nbqueue.errors import LostByServer, NoServer, ServerRefused
from nbqueue.store.scripts import load


def busy(hurt, n=12, seconds=0.25, workers=1, **options):
    """A batch of which some jobs have ended and others run."""
    for _ in range(workers):
        hurt.start(**options)
    batch = hurt.map(n, seconds)
    wait_until(lambda: batch.tally.finished >= 2, 30)
    return batch


def attempts(batch):
    return {job.outcome.attempt for job in batch}


def refusal(verb, *args):
    """What a verb raises once the server is in trouble."""
    try:
        verb(*args)
    except (ServerRefused, NoServer) as why:
        return str(why)
    return ""


@pytest.mark.parametrize("leases", [1, 3])
def test_a_pause_charges_nobody(hurt, leases):
    batch = busy(hurt, 12, 0.4, workers=2)
    hurt.pause(leases * 2.0)
    hurt.ends_well(batch)
    assert attempts(batch) == {1}, hurt.logs()
    assert all(len(runs) == 1 for runs in hurt.witness.lives().values())


@pytest.mark.parametrize("verb", ["claim", "settle"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_a_moment_and_restarted_on_its_data(hurt, verb, when):
    worker = hurt.start().up()
    first = hurt.map(2)
    assert first.wait(20), worker.log
    batch = hurt.map(6)
    struck(hurt, verb, when)
    hurt.restart()
    hurt.ends_well(first, batch)
    assert attempts(batch) == {1}
    assert all(len(runs) == 1 for runs in hurt.witness.lives().values())


@pytest.mark.parametrize(("verb", "when"), [("claim", "after"), ("settle", "before")])
def test_killed_at_a_moment_and_it_forgot_all(hurt, no_copy, verb, when):
    worker = hurt.start().up()
    assert hurt.map(2).wait(20), worker.log
    forgets(hurt, worker, lambda: (struck(hurt, verb, when), hurt.restart(forgetting=True)))


def struck(hurt, verb, when):
    """Kills the server just before a request of the worker, or just after it was carried out and not answered."""
    down = threading.Event()
    hurt.proxy.strike(load(verb).sha, when, lambda: (hurt.kill(), down.set()))
    assert down.wait(20), hurt.logs()


def test_flushed_while_a_batch_runs(hurt, no_copy):
    worker = hurt.start().up()
    forgets(hurt, worker, hurt.client().flushall)


def forgets(hurt, worker, action):
    """The client says what is lost; the worker stops it, joins anew, and serves what comes then."""
    lost = nbqueue.map(hurt.witness.job(0.3), range(8))
    wait_until(lambda: lost.tally.started or lost.tally.finished, 20)
    action()
    with pytest.raises(LostByServer, match=lost.id):
        lost.wait(LIMIT)
    frame = lost.to_frame(wait=False, meta=True)
    assert len(frame) == 8
    assert set(frame["status"]) <= {"finished", "failed"}
    assert set(frame.loc[frame["status"] == "failed", "cause"]) == {"lost_by_server"}
    batch = hurt.map(4)
    assert batch.wait(LIMIT), worker.log
    assert "joins under a new id" in worker.log
    hurt.ends_well(batch)


SLOWLY = ["--key-load-delay", "80000", "--loading-process-events-interval-bytes", "1024"]


def test_loading_takes_a_while(hurt):
    batch = busy(hurt, seconds=0.3)
    # What lies in a snapshot is loaded with a delay for each key, and the server answers meanwhile that it loads.
    client = hurt.client()
    client.mset({f"other:{number}": os.urandom(5_000) for number in range(20)})
    client.bgrewriteaof()
    wait_until(lambda: rewritten(client), 20)
    hurt.kill()
    back = threading.Thread(target=hurt.restart, kwargs={"options": SLOWLY})
    back.start()
    wait_until(lambda: "loading" in refusal(hurt.broker.queues), 20)
    back.join(LIMIT)
    hurt.ends_well(batch)
    assert "the server is back" in hurt.logs()
    assert attempts(batch) == {1}


def rewritten(client):
    info = client.info("persistence")
    return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"] and info["aof_base_size"]


def test_memory_is_full_while_jobs_run(hurt):
    batch = busy(hurt)
    client = hurt.client()
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    with pytest.raises(ServerRefused, match="config set maxmemory"):
        nbqueue.map(abs, range(3))
    with pytest.raises(ServerRefused, match="memory is full"):
        nbqueue.submit(abs, 3)
    assert batch.wait(LIMIT), hurt.logs()
    client.config_set("maxmemory", 0)
    more = hurt.map(3)
    hurt.ends_well(batch, more)
    assert "trying again" not in hurt.logs()  # nothing of what runs was held up


def test_memory_is_full_in_the_middle_of_a_submit(hurt, monkeypatch):
    """`map` raises, so there is no handle: nothing of what had arrived goes on."""
    monkeypatch.setattr(upload, "AT_ONCE", 60)  # else the rest goes out on a thread, and waiting raises
    client = hurt.client()
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (6 << 20))
    with pytest.raises(ServerRefused, match="memory is full"):
        nbqueue.map(len, [os.urandom(4_000) for _ in range(5_000)])
    (view,) = hurt.broker.batches()
    assert view.n < 5_000
    wait_until(lambda: hurt.broker.view(view.id).tally.canceled == view.n, 20)
    client.config_set("maxmemory", 0)
    hurt.start().up()
    hurt.ends_well(hurt.map(2))


def test_the_disk_cannot_be_written(hurt):
    """MISCONF: the snapshot's file cannot take its place, since a folder stands there."""
    batch = busy(hurt)
    client = hurt.client()
    client.config_set("save", "3600 1")
    obstacle = hurt.folder / "dump.rdb"
    obstacle.mkdir()
    client.bgsave()
    wait_until(lambda: "disk" in refusal(nbqueue.submit, abs, -1), 20)
    wait_until(lambda: "trying again" in hurt.logs(), 20)
    obstacle.rmdir()
    saved(client)
    hurt.ends_well(batch)


def saved(client):
    def good():
        with contextlib.suppress(wrong.ResponseError):  # one is being written
            client.bgsave()
        return client.info("persistence")["rdb_last_bgsave_status"] == "ok"

    wait_until(good, 20, every=0.1)


def test_it_becomes_a_replica_for_a_while(hurt):
    batch = busy(hurt)
    client = hurt.client()
    client.execute_command("REPLICAOF", "127.0.0.1", free_port())
    assert "primary" in refusal(nbqueue.submit, abs, -1)
    wait_until(lambda: "trying again" in hurt.logs(), 20)
    client.execute_command("REPLICAOF", "NO", "ONE")
    hurt.ends_well(batch)


def test_a_script_keeps_it_busy(hurt):
    batch = busy(hurt)
    client = hurt.client()
    client.config_set("lua-time-limit", 50)

    def spin():
        with contextlib.suppress(wrong.RedisError):
            hurt.client().eval("while true do end", 0)

    threading.Thread(target=spin, daemon=True).start()
    wait_until(lambda: "script kill" in refusal(nbqueue.submit, abs, -1), 20)
    wait_until(lambda: "trying again" in hurt.logs(), 20)
    wait_until(lambda: ended(client), 20)
    hurt.ends_well(batch)
    assert attempts(batch) == {1}


def ended(client):
    try:
        return client.script_kill()
    except wrong.ResponseError:
        return True  # none runs any more


@pytest.mark.parametrize("storm", ["clients", "scripts"])
def test_a_storm(hurt, storm):
    """Connections are killed, or scripts forgotten, again and again."""
    client, over = hurt.client(), threading.Event()

    def rage():
        while not over.wait(0.03):
            if storm == "scripts":
                client.script_flush()
                continue
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)

    hurt.start().up()
    thread = threading.Thread(target=rage)
    thread.start()
    try:
        batch = hurt.map(20, 0.05)
        large = nbqueue.map(abs, range(1_500))
        assert batch.wait(LIMIT), hurt.logs()
        assert large.wait(LIMIT), hurt.logs()
    finally:
        over.set()
        thread.join()
    assert large.results() == list(range(1_500))
    large.forget()
    hurt.ends_well(batch)
    assert attempts(batch) == {1}


def test_it_is_gone_for_longer_than_a_lease_and_a_worker_dies_meanwhile(hurt):
    """What the dead one held is given to the other, once; that one's own jobs go on."""
    batch = busy(hurt, 12, 0.4, workers=2)
    os.kill(hurt.pid, signal.SIGSTOP)
    first = hurt.fleet.workers[0]
    for pid in [first.pid, *first.tree()]:
        with contextlib.suppress(ProcessLookupError):  # it ended with the one before
            os.kill(pid, signal.SIGKILL)
    hurt.pause(2.5)
    hurt.ends_well(batch)
    assert attempts(batch) <= {1, 2}
