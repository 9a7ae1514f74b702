"""Local mode by hand: `nbqueue.local(slots=2)` and `.stop()`."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from nbqueue import settings as settings_module
from nbqueue.checks import brief, counted, size
from nbqueue.client.session import session as session_module
from nbqueue.client.session.session import Session
from nbqueue.errors import BadOption, NoServer, NoSuchWorker
from nbqueue.launch import local
from nbqueue.store import server
from nbqueue.worker import mail


class LocalServer:
    """The private server and the local worker of this machine."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __repr__(self) -> str:
        return f"<nbqueue.local in {self.session.settings.local}; .stop() ends it>"

    @classmethod
    def start(cls, slots: int | None = None, memory: int | str | None = None) -> LocalServer:
        """Makes local mode the session of this process.

        With `slots` or `memory`, what is not running is started now, and what runs is changed; without, it is started
        at the first submission, so that `local().stop()` starts nothing only to stop it.
        """
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
            raise BadOption(message=f"slots={brief(slots)} must be a whole number of 1 or more.")
        found = msgspec.structs.replace(settings_module.load(), url=None)
        current = session_module.peek()
        session = current if current is not None and current.local and current.settings == found else Session(found)
        session.slots = slots or session.slots
        session.memory = size("memory", memory)
        if slots is not None or memory is not None:
            session.attend()
        session_module.use(session)
        made = cls(session)
        if session.memory is not None:
            server.start(session.settings.local, maxmemory=session.memory)
        if slots is not None:
            made._resize(slots)
        return made

    def _resize(self, slots: int) -> None:
        """Lets a worker with other slots take the place of the one that lives, if that has another number."""
        session = self.session
        begun = session.resize(slots)
        if begun is None:
            return
        for worker in begun.before:
            with suppress(NoSuchWorker):  # it has just left
                mail.send(session.broker, session.sealer, worker.id, mail.SHUTDOWN)
        had = sum(worker.slots for worker in begun.before)
        session_module.tell(
            f"nbqueue: a local worker with {counted(slots, 'slot')} replaces the one with {had}, which finishes its "
            "running jobs."
        )

    def stop(self) -> None:
        """Ends the local worker (what it runs is given back), then the private server. The data stays on disk."""
        folder = self.session.settings.local
        self.session.asleep = True
        if server.status(folder) is None:
            local.dismiss(folder)
            return
        try:
            broker = self.session.broker
            pids = local.stop(folder, broker)
            local.until_gone(pids)
        except NoServer as why:
            session_module.tell(f"nbqueue: the private server did not answer ({why})")
        self.session.disconnect()
        server.stop(folder)
