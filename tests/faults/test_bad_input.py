"""Bytes written by someone without the secret are never opened, and cost no more than the job that they are for."""

from __future__ import annotations

import pickle
import struct

import msgspec
import pytest
from helpers import wait_until

import nbqueue
from nbqueue import wire
from nbqueue.errors import BadSignature
from nbqueue.model import FunctionRecord, JobMeta, Outcome, State, decode, encode, new_id
from nbqueue.store.records import LETTER, NewBatch
from nbqueue.wire import Keyring, Sealer
from nbqueue.worker import mail


def double(x):
    return 2 * x


def fails_once(path, x):
    if not path.exists():
        path.touch()
        raise LookupError(x)
    return x


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def bomb(tmp_path):
    """(the pickle, whether it went off)"""
    path = tmp_path / "boom"
    yield pickle.dumps(Bomb(path))
    assert not path.exists(), "what nobody signed was opened"


class Stranger:
    """Someone who reads and writes the server, knows our key's id and all formats, and not the secret."""

    def __init__(self, session):
        ring = Keyring([b"of someone who has no business here"], "elsewhere")
        ours = session.sealer.keyring.current
        ring._keys, ring.current = {ours: ring.key}, ours
        self.sealer = Sealer(ring, session.settings.namespace)
        self.client, self.keys = session.broker.client, session.broker.keys

    def outcome(self, batch, index, value, attempt=1):
        record = encode(Outcome(State.FINISHED, None, attempt, 1, 1, value=value))
        return head(State.FINISHED, attempt) + self.sealer.seal(wire.OUTCOME, batch, index, record, attempt)

    def put(self, batch, part, index, blob):
        self.client.hset(self.keys.part(batch, part), index, blob)


@pytest.fixture
def stranger(session):
    return Stranger(session)


def head(state, attempt):
    return struct.pack(">cH", LETTER[state], attempt)


def causes(batch):
    return {job.index: str(job.outcome.cause) for job in batch.failed}


# ---------------------------------------------------------------- by someone without the secret


def test_forged_arguments(no_copy, session, fleet, stranger, bomb):
    batch = nbqueue.map(double, range(3))
    stranger.put(batch.id, "args", 1, stranger.sealer.seal(wire.ARGUMENTS, batch.id, 1, b"1" + bomb))
    fleet.start().up()
    assert batch.wait(30)
    assert causes(batch) == {1: "signature"}
    assert batch.results(errors="skip") == [0, 4]
    nbqueue.attach(batch.id).to_frame(args=True)


@pytest.mark.parametrize("what", ["function", "spec"])
def test_a_forged_function_or_description(no_copy, session, fleet, stranger, bomb, what):
    batch, good = nbqueue.map(double, range(2)), nbqueue.map(double, range(2))
    sealer, broker = session.sealer, session.broker
    if what == "function":
        record = decode(FunctionRecord, sealer.unseal(wire.FUNCTION, batch.id, -1, broker.function(batch.id)))
        forged = msgspec.structs.replace(record, payload=bomb)
        blob = stranger.sealer.seal(wire.FUNCTION, batch.id, -1, encode(forged))
        stranger.client.set(stranger.keys.part(batch.id, "fn"), blob)
    else:
        forged = msgspec.structs.replace(batch.ref.spec, label="evil", isolate=True)
        blob = stranger.sealer.seal(wire.SPEC, batch.id, -1, encode(forged))
        stranger.client.hset(stranger.keys.at("b", batch.id), "spec", blob)
    fleet.start().up()
    assert batch.wait(30)
    assert causes(batch) == {0: "signature", 1: "signature"}
    assert good.results(timeout=30) == [0, 2]
    if what == "spec":
        with pytest.raises(BadSignature, match="not unpickled"):
            nbqueue.attach(batch.id)


def test_a_forged_submission(no_copy, session, fleet, stranger, bomb):
    ours = nbqueue.map(double, range(2))
    broker, seal = session.broker, stranger.sealer.seal
    record = decode(FunctionRecord, session.sealer.unseal(wire.FUNCTION, ours.id, -1, broker.function(ours.id)))
    name = new_id("forged")
    batch = NewBatch(
        id=name,
        queue="default",
        session="s",
        nonce="n",
        spec=seal(wire.SPEC, name, -1, encode(ours.ref.spec)),
        function=seal(wire.FUNCTION, name, -1, encode(msgspec.structs.replace(record, payload=bomb))),
        key=record.key,
        signer=session.sealer.keyring.current.hex(),
        python=record.python,
        host=record.host,
        result_ttl=60,
        failure_ttl=60,
    )
    broker.submit(batch, [seal(wire.ARGUMENTS, name, 0, b"1" + bomb)], last=True)
    fleet.start().up()
    assert ours.results(timeout=30) == [0, 2]
    wait_until(lambda: broker.view(name).tally.failed == 1, 30)
    with pytest.raises(BadSignature):
        nbqueue.attach(name)
    assert "someone else" in nbqueue.batches().set_index("id").loc[name, "owner"]


def test_forged_outcome_log_and_meta(no_copy, session, anew, fleet, stranger, bomb):
    fleet.start().up()
    batch = nbqueue.map(double, range(4))
    assert batch.results(timeout=30) == [0, 2, 4, 6]
    seal = stranger.sealer.seal
    stranger.put(batch.id, "out", 0, stranger.outcome(batch.id, 0, bomb))
    stranger.put(batch.id, "tail", 1, seal(wire.TAIL, batch.id, 1, b"what it never said", 1))
    stranger.put(batch.id, "meta", 1, seal(wire.META, batch.id, 1, encode(JobMeta({"a": bomb}))))
    again = anew(batch.id)
    frame = again.to_frame(timeout=30)
    assert list(frame["status"]) == ["failed", "finished", "finished", "finished"]
    assert "signature" in frame["error"][0]
    for act in (lambda: again[0].wait(5), lambda: again[1].log, again[1].get_meta):
        with pytest.raises(BadSignature, match="signature"):
            act()
    assert again[3].wait(5) == 6


def test_forged_and_repeated_messages(session, fleet, stranger):
    worker = fleet.start().up()
    name = nbqueue.Worker.all()[0].id
    message = mail.Message("shutdown", "", session.broker.now_us(), "n1")
    session.broker.post(name, mail.write(stranger.sealer, name, message))
    wait_until(lambda: worker.log.count("a message was refused") == 1, 20)
    stop = mail.write(session.sealer, name, mail.Message("stop", "nothing-1", session.broker.now_us(), "n2"))
    session.broker.post(name, stop)
    wait_until(lambda: "told to stop nothing-1, which is not here" in worker.log, 20)
    session.broker.post(name, stop)
    wait_until(lambda: worker.log.count("a message was refused") == 2, 20)
    assert "it has come before" in worker.log
    assert nbqueue.map(double, range(3)).results(timeout=30) == [0, 2, 4]


# ---------------------------------------------------------------- moved, replayed, damaged


def test_arguments_in_the_place_of_a_result(no_copy, session, anew, fleet, stranger):
    fleet.start().up()
    batch = nbqueue.map(double, range(2))
    assert batch.results(timeout=30) == [0, 2]
    args = session.broker.arguments(batch.id, [0])[0]
    stranger.put(batch.id, "out", 0, head(State.FINISHED, 1) + args)
    with pytest.raises(BadSignature):
        anew(batch.id)[0].wait(5)


def test_an_outcome_of_an_earlier_attempt_does_not_pass_for_a_later_one(
    no_copy, session, anew, fleet, stranger, tmp_path
):
    fleet.start().up()
    batch = nbqueue.starmap(fails_once, [(tmp_path / "tried", 7)])
    assert batch.wait(30)
    old = session.broker.outcomes(batch.id, [0])[0]
    batch.retry()
    assert batch.results(timeout=30) == [7]
    assert batch[0].attempt == 2
    stranger.put(batch.id, "out", 0, head(State.FAILED, 2) + old[3:])
    with pytest.raises(BadSignature):
        anew(batch.id)[0].wait(5)
    stranger.put(batch.id, "out", 0, old)  # as it was: it is what it says, the outcome of attempt 1
    shown = anew(batch.id)[0]
    assert (shown.outcome.attempt, shown.is_failed) == (1, True)


def test_a_state_that_nobody_signed_does_not_pass(no_copy, session, anew, fleet, stranger):
    fleet.start().up()
    batch = nbqueue.map(double, range(2))
    assert batch.results(timeout=30) == [0, 2]
    blob = session.broker.outcomes(batch.id, [0])[0]
    stranger.put(batch.id, "out", 0, head(State.FAILED, 1) + blob[3:])
    stranger.put(batch.id, "out", 1, b"f" + blob[1:])
    again = anew(batch.id)
    for job in again:
        with pytest.raises(BadSignature):
            job.wait(5)


def test_a_flipped_bit_a_lost_end_and_nothing(no_copy, session, fleet, stranger):
    batch = nbqueue.map(double, range(5))
    flipped, cut = map(bytearray, session.broker.arguments(batch.id, [0, 1]))
    flipped[-1] ^= 1
    for index, blob in enumerate((flipped, cut[:-1], b"")):
        stranger.put(batch.id, "args", index, bytes(blob))
    stranger.client.hdel(stranger.keys.part(batch.id, "args"), 3)
    fleet.start().up()
    assert batch.wait(30)
    assert causes(batch) == dict.fromkeys(range(4), "signature")
    assert batch.results(errors="skip") == [8]
