"""Messages to a worker: only who has the secret writes one, for one worker, once, and not for long."""

from __future__ import annotations

import pytest

from nbqueue.errors import BadSignature, NoSuchWorker, UnknownKey
from nbqueue.wire import Keyring, Sealer
from nbqueue.worker import mail
from nbqueue.worker.mail import Mailbox, Message

NOW = 1_700_000_000_000_000


def sealer(secret: bytes = b"a secret of sixteen letters") -> Sealer:
    return Sealer(Keyring([secret], "nowhere"), "test")


def letter(**changes) -> bytes:
    facts = {"verb": "stop", "job": "f-1", "at_us": NOW, "nonce": "n1"} | changes
    return mail.write(sealer(), "w1", Message(**facts))


def test_a_message_is_opened_by_the_worker_that_it_is_for():
    assert Mailbox(sealer()).read("w1", letter(), NOW + 10**6).job == "f-1"


def test_it_is_refused_elsewhere_later_and_twice():
    box = Mailbox(sealer())
    with pytest.raises(BadSignature, match="does not fit"):
        box.read("w2", letter(), NOW)
    for at_us in (NOW - 301 * 10**6, NOW + 301 * 10**6):
        with pytest.raises(BadSignature, match="five minutes"):
            box.read("w1", letter(at_us=at_us), NOW)
    box.read("w1", letter(), NOW)
    with pytest.raises(BadSignature, match="come before"):
        box.read("w1", letter(), NOW)
    box.read("w1", letter(nonce="n2"), NOW)


def test_it_is_refused_when_nobody_with_the_secret_wrote_it():
    box = Mailbox(sealer())
    with pytest.raises(BadSignature):
        box.read("w1", b'{"verb": "shutdown"}', NOW)
    with pytest.raises(BadSignature):
        box.read("w1", letter()[:-1], NOW)
    with pytest.raises(UnknownKey):
        Mailbox(sealer(b"another secret of some length")).read("w1", letter(), NOW)


def test_a_worker_that_is_not_there_is_named(broker):
    with pytest.raises(NoSuchWorker, match="nobody-1"):
        mail.send(broker, sealer(), "nobody-1", mail.SHUTDOWN)
