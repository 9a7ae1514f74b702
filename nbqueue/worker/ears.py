"""The worker's two ears: mail (hints and signed control messages) always, bells only while it has room.

A bell's token wakes one worker; who is full does not listen, so the token waits for one that is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from selectors import EVENT_READ, BaseSelector

from nbqueue.store.broker import Broker
from nbqueue.store.ear import Ear
from nbqueue.worker.mail import LOOK

STRETCH = 4  # beats that the mail is listened to at a stretch: a link that died without a word is found out by then


class Ears:
    """Two blocking connections, watched by the worker's selector."""

    connections = 3  # of one worker to its server: commands, mail, bells

    def __init__(self, broker: Broker, selector: BaseSelector, beat: float) -> None:
        self._broker, self._selector, self._stretch = broker, selector, STRETCH * beat
        self._mail, self._bell = Ear(broker.connection), Ear(broker.connection)
        self._watched: dict[Ear, int] = {}  # ear -> the descriptor that the selector knows
        self._worker = ""

    def attend(self, worker: str) -> None:
        """Listens to the mail of this worker, again if the connection was lost. Raises NoServer."""
        self._worker = worker
        self._listen(self._mail, [self._broker.keys.mail(worker)], self._stretch)

    def listen(self, queues: Sequence[str], seconds: float) -> None:
        """Listens to the bells of these queues. Raises NoServer."""
        self._listen(self._bell, [self._broker.keys.bell(queue) for queue in queues], seconds)

    def _listen(self, ear: Ear, keys: Sequence[str], seconds: float) -> None:
        if ear.overdue():
            # A dead link: its successor may get the same descriptor, which the selector must learn anew.
            self._unwatch(ear)
            ear.close()
        ear.listen(keys, seconds)
        known = self._watched.get(ear)
        if known == ear.fileno():
            return
        self._unwatch(ear)
        self._watched[ear] = ear.fileno()
        self._selector.register(ear.fileno(), EVENT_READ, ear)

    def hear(self, ear: Ear) -> bytes | None:
        """What has come: the bytes of a letter, nothing for a bell, None where the wait goes on.

        Where the mail was lost with its connection, a letter that says `look` stands for it.
        """
        heard = ear.hear()
        if not ear.listening:
            self._unwatch(ear)
        if heard is None and ear.listening:
            return None
        if ear is not self._mail:
            return b""
        if heard is None:
            return None if ear.connected else LOOK
        return heard[1]

    def _unwatch(self, ear: Ear) -> None:
        if (known := self._watched.pop(ear, None)) is not None:
            self._selector.unregister(known)

    def close(self) -> None:
        """Closes both connections."""
        for ear in (self._mail, self._bell):
            self._unwatch(ear)
            ear.close()
