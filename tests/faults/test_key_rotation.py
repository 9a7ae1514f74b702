"""A key is replaced while work goes on: two lines in the secret file, then one."""

from __future__ import annotations

import pytest
from fleet import Fleet
from helpers import wait_until

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.errors import UnknownKey

NEW = "n" * 64


def write(home, *keys):
    (home / "secret").write_text("".join(f"{key}\n" for key in keys))
    (home / "secret").chmod(0o600)


def reconnect(session):
    return nbqueue.connect(session.settings.url, namespace=session.settings.namespace)


def held(path, x):
    from helpers import wait_until

    wait_until(path.exists, 60)
    return x


def test_a_key_is_replaced_while_a_batch_runs(no_copy, session, fleet, home, tmp_path):
    old = (home / "secret").read_text().strip()
    first = fleet.start().up()
    gate = tmp_path / "gate"
    batch = nbqueue.starmap(held, [(gate, 0), (gate, 1), (gate, 2), (gate, 3)])
    done = nbqueue.map(abs, range(2), queue="other")
    Fleet.start(fleet, "other").up()
    assert done.results(timeout=30) == [0, 1]
    wait_until(lambda: batch.tally.started == 2, 20)
    write(home, NEW, old)  # the new one signs, both are accepted
    second = fleet.start().up()
    gate.touch()
    assert batch.results(timeout=30) == [0, 1, 2, 3]
    assert first.stop() == 0
    new = reconnect(session)
    assert nbqueue.map(abs, [5]).results(timeout=30) == [5]
    assert nbqueue.attach(done.id).results(timeout=30) == [0, 1]
    assert nbqueue.attach(batch.id).results(timeout=30) == [0, 1, 2, 3]
    assert len(new.sealer.keyring.ids) == 2
    assert second.process.poll() is None
    gone = session.sealer.keyring.current.hex()
    write(home, NEW)
    reconnect(session)
    with pytest.raises(UnknownKey, match=f"key {gone}, which is not in .*secret.*one more line"):
        nbqueue.attach(done.id)
    assert f"key {gone}" in nbqueue.batches().set_index("id").loc[done.id, "owner"]


def test_batches_of_another_user_wait_for_that_users_worker(session, fleet, tmp_path):
    theirs = [nbqueue.map(abs, range(2)) for _ in range(3)]
    key = session.sealer.keyring.current.hex()
    stranger = fleet.start(env={"NBQUEUE_HOME": str(tmp_path / "other")}).up()
    wait_until(lambda: f"3 batches wait for key {key}" in stranger.log, 20)
    assert [batch.tally.queued for batch in theirs] == [2, 2, 2]
    assert stranger.process.poll() is None
    sessions._current = None
