"""Signed words from afar to one worker: stop a job, shut down.

A message is sealed for the worker that it is meant for, dated on Redis's clock, and carries a nonce: nobody without the
secret can write one, and one that was seen on its way can be used neither elsewhere nor later nor twice. The plain
word `look` is no message but a hint: it makes a worker ask the store at once, and nothing more.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import msgspec

from nbqueue.errors import BadSignature, NoSuchWorker
from nbqueue.model import decode, encode
from nbqueue.store.broker import Broker
from nbqueue.wire import MAIL, Sealer
from nbqueue.worker.score import Score

LOOK = b"look"
STOP, SHUTDOWN, KILL = "stop", "shutdown", "kill-horse"
LATE = 300.0  # seconds after which a message counts no more


class Message(msgspec.Struct, frozen=True):
    """What a worker is told: `stop` the job with this id, `shutdown`, or `kill-horse`: whatever runs."""

    verb: str
    job: str
    at_us: int
    nonce: str


def send(broker: Broker, sealer: Sealer, worker: str, verb: str, job: str = "") -> None:
    """Puts a message into a worker's mail. Raises NoSuchWorker."""
    message = Message(verb, job, broker.now_us(), secrets.token_hex(8))
    if not broker.post(worker, write(sealer, worker, message)):
        raise NoSuchWorker(name=worker, server=broker.url)


def write(sealer: Sealer, worker: str, message: Message) -> bytes:
    """A message, sealed for this worker."""
    return sealer.seal(MAIL, worker, -1, encode(message))


@dataclass(slots=True)
class Mailbox:
    """Opens what came for one worker."""

    sealer: Sealer
    _seen: dict[str, int] = field(default_factory=dict)  # nonces of the last LATE seconds

    def heard(self, worker: str, blob: bytes, now_us: float, score: Score) -> Message | None:
        """The message in `blob`; None for one that was refused, which the log then says."""
        try:
            return self.read(worker, blob, now_us)
        except BadSignature as why:
            score.line("!!", f"a message was refused: {why}")
            return None

    def read(self, worker: str, blob: bytes, now_us: float) -> Message:
        """The message in `blob`. Raises BadSignature: not signed, for another worker, too old, or seen before."""
        what = f"A message to {worker}"
        message = decode(Message, self.sealer.unseal(MAIL, worker, -1, blob), what)
        reach = LATE * 1e6
        if abs(now_us - message.at_us) > reach:
            raise BadSignature(
                what=what, why="it is more than five minutes old, so it may have been kept and sent again"
            )
        self._seen = {nonce: at_us for nonce, at_us in self._seen.items() if now_us - at_us <= reach}
        if message.nonce in self._seen:
            raise BadSignature(what=what, why="it has come before")
        self._seen[message.nonce] = message.at_us
        return message
