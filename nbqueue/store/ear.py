"""Two ways to be told that something happened, so that nobody has to ask all the time.

An Ear waits in BLPOP on a connection of its own, without blocking the process: its file descriptor joins a selector.
What it hears is a hint; work is never popped by a blocking command, since a lost reply would lose the job. Hints hears
in which batches of a session something happened.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis import exceptions as wrong

from nbqueue.store.connection import Connection, NoServer, translate

_DEAF = 1.0  # seconds after a refusal
_POLL = 0.02  # seconds between two looks, where nothing can be watched
_PATIENCE = 3.0  # an answer that is so much later than BLPOP's own end will not come


class Ear:
    """A connection that waits for a token on one of several lists.

    listen() sends the command, hear() takes the answer when the descriptor is readable. After a loss of the connection
    hear() answers None and `listening` is False; the next listen() connects anew, and the descriptor is another one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._link: Any = None
        self._socket: Any = None
        self._reader: Any = None
        self._client_id = 0
        self._keys: tuple[str, ...] = ()
        self._deadline = 0.0
        self._kept: tuple[str, bytes] | None = None
        self._deaf_until = 0.0  # the server refused to listen: it is not asked again before
        self._wake: socket.socket | None = None  # by which a thread says that it heard something: see _poll
        self._heard: deque[tuple[str, bytes] | None] = deque()
        self._thread, self._closed = threading.Thread(), threading.Event()
        self.listening = False

    def fileno(self) -> int:
        """The descriptor to watch; connects if there is no connection. Raises NoServer or ServerRefused."""
        if self._socket is None:
            self._open()
        return int(self._socket.fileno())

    def listen(self, keys: Sequence[str], seconds: float) -> None:
        """Waits for at most `seconds` on these lists, the first named first. Raises NoServer or ServerRefused.

        While it listens already, the same keys change nothing; with other keys it starts anew. Where the server has
        refused (a key holds something else), it listens again after a second.
        """
        if time.monotonic() < self._deaf_until:
            return
        if self.listening and self.overdue():
            self.close()
        if self.listening and tuple(keys) == self._keys:
            return
        if self.listening:
            self._hush()
        self.fileno()
        self._keys = tuple(keys)
        self._deadline = time.monotonic() + seconds + _PATIENCE
        self.listening = True
        if self._wake is not None:
            self._closed.clear()
            self._thread = threading.Thread(target=self._poll, args=(seconds,), name="nbqueue ear", daemon=True)
            self._thread.start()
            return
        try:
            self._send("BLPOP", *self._keys, f"{max(0.01, seconds):.3f}")
        except OSError as why:
            self.close()
            raise self._no_server(why) from why

    def _poll(self, seconds: float) -> None:
        """Looks again and again, in a thread, where there is no socket to watch: what plays a server has none."""
        assert self._wake is not None
        until = time.monotonic() + seconds
        found: tuple[str, Any] | None = None
        with suppress(wrong.RedisError, OSError):
            while found is None and time.monotonic() < until and not self._closed.wait(_POLL):
                answers = ((key, self._connection.client.lpop(key)) for key in self._keys)
                found = next(((key, value) for key, value in answers if value is not None), None)
            self._heard.append(found)
            self._wake.send(b"!")

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as anyone knows."""
        return self._socket is not None

    def overdue(self) -> bool:
        """Whether the answer should have come long ago: the link is dead, though nobody said so."""
        return self.listening and time.monotonic() > self._deadline

    def hear(self) -> tuple[str, bytes] | None:
        """What was heard (key and value), or None: nothing yet, the time is over, or the connection is lost.

        Never blocks. `listening` tells whether the wait goes on.
        """
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        if not self.listening:
            return None
        if self._wake is not None:
            return self._hear_thread()
        try:
            return self._hear()
        except (OSError, hiredis.HiredisError):
            self.close()
            return None

    def _hear_thread(self) -> tuple[str, bytes] | None:
        if not self._heard:
            return None
        self._socket.recv(1)
        self.listening = False
        return self._heard.popleft()

    def _hear(self) -> tuple[str, bytes] | None:
        while True:
            try:
                data = self._socket.recv(65_536)
            except (BlockingIOError, InterruptedError):
                data = None
            except OSError as why:
                # A TLS socket has its own word for "nothing yet".
                if type(why).__name__ not in ("SSLWantReadError", "SSLWantWriteError"):
                    raise
                data = None
            if data == b"":
                raise ConnectionResetError
            if data:
                self._reader.feed(data)
            answer = self._reader.gets()
            if answer is not False:
                self.listening = False
                if isinstance(answer, Exception):
                    self._deaf_until = time.monotonic() + _DEAF
                    raise hiredis.HiredisError(str(answer))
                return (answer[0].decode(), answer[1]) if answer else None
            if data is None:
                return None

    def _hush(self) -> None:
        """Ends a wait; what was heard meanwhile is kept."""
        if self._wake is not None:
            self.close()
            return
        try:
            with self._connection.errors():
                self._connection.client.client_unblock(self._client_id)
            until = time.monotonic() + _PATIENCE
            while self.listening and (left := until - time.monotonic()) > 0:
                select.select([self._socket], [], [], left)
                self._kept = self._hear() or self._kept
        except (OSError, hiredis.HiredisError):
            self.close()
        if self.listening:
            self.close()

    def _open(self) -> None:
        try:
            pool = self._connection.client.connection_pool
            # Not by the pool: it counts what it has made, never what was closed, and refuses after a hundred.
            link: Any = pool.connection_class(**pool.connection_kwargs)
            link.connect()
            if not isinstance(getattr(link, "_sock", None), socket.socket):
                link.disconnect()
                self._socket, self._wake = socket.socketpair()
                self._socket.setblocking(False)
                return
            link.send_command("CLIENT", "ID")
            self._client_id = int(link.read_response())
        except wrong.RedisError as why:
            raise translate(why, self._connection.url) from why
        except OSError as why:
            raise self._no_server(why) from why
        # redis-py has done its part (TLS, password, database); from here on the socket is read without blocking.
        self._link, self._socket = link, link._sock  # noqa: SLF001
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()

    def _send(self, *words: str) -> None:
        for chunk in self._link.pack_command(*words):
            self._socket.sendall(chunk)

    def _no_server(self, why: Exception) -> NoServer:
        return NoServer(url=self._connection.url, why=str(why), remedy="It will be tried again.")

    def close(self) -> None:
        """Closes the connection; listen() opens another."""
        if self._link is not None:
            self._link.disconnect()
        if self._wake is not None:
            self._closed.set()
            if self._thread.is_alive():
                self._thread.join()
            self._heard.clear()
            self._wake.close()
            self._socket.close()
        self._link = self._socket = self._reader = self._wake = None
        self.listening = False


class Hints:
    """Hears in which batches of a session something happened. Only hints: what was said while it was away is lost."""

    def __init__(self, connection: Connection, channel: str) -> None:
        self._connection = connection
        self._channel = channel
        self._pubsub: Any = None

    def wait(self, seconds: float) -> set[str]:
        """The batches named within `seconds`, as soon as there is one. Raises NoServer."""
        try:
            with self._connection.errors():
                return self._wait(seconds)
        except Exception:
            self.close()
            raise

    def _wait(self, seconds: float) -> set[str]:
        if self._pubsub is None:
            client: Any = self._connection.client
            self._pubsub = client.pubsub(ignore_subscribe_messages=True)
            self._pubsub.subscribe(self._channel)
        found: set[str] = set()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 or found:
            message = self._pubsub.get_message(timeout=0.0 if found else left)
            if message is not None:
                found.add(message["data"].decode("utf-8", "replace"))
            elif found:
                break
        return found

    def close(self) -> None:
        """Closes the connection; wait() opens another."""
        if self._pubsub is not None:
            self._pubsub.close()
        self._pubsub = None
