"""One end of a socket on which frames travel, descriptors beside them."""

from __future__ import annotations

import os
import socket
from collections import deque

from nbqueue.worker import frames

_CHUNK = 1 << 18
_READ_AT_ONCE = 1 << 22  # one receive takes no more than this, so that nobody is starved

Frame = tuple[int, bytes, int | None]  # kind, payload, descriptor that came along


class Channel:
    """One end of a socket, which never blocks: what cannot be written yet waits in memory.

    `eof` becomes True when the other side is gone; frames that came before are still handed out. A descriptor given
    to `send` belongs to the channel, one handed out by `receive` to the caller.
    """

    def __init__(self, sock: socket.socket, limit: int = (1 << 32) - 1) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limit = limit
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self._out: deque[tuple[bytearray, list[int]]] = deque()
        self.eof = False
        self.dry = False  # whether the last receive took all that there was
        self.spoiled = False  # whether what comes after the frames of the last receive is none: the next one says so

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._out) and not self.eof

    def queue(self, kind: int, payload: bytes = b"", fd: int | None = None) -> None:
        """Adds a frame to what `flush` will write."""
        if fd is not None:
            self._out.append((bytearray(), [fd]))
        elif not self._out:
            self._out.append((bytearray(), []))
        buffer = self._out[-1][0]
        buffer += frames.HEAD.pack(len(payload), kind if fd is None else kind | frames.WITH_FD)
        buffer += payload

    def send(self, kind: int, payload: bytes = b"", fd: int | None = None) -> None:
        """Queues a frame and writes what can be written now; never blocks."""
        self.queue(kind, payload, fd)
        self.flush()

    def flush(self) -> None:
        """Writes what can be written now."""
        while self._out and not self.eof:
            buffer, fds = self._out[0]
            try:
                with memoryview(buffer) as view, view[:_CHUNK] as part:
                    sent = socket.send_fds(self._sock, [part], fds) if fds else self._sock.send(part)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.eof = True
                return
            while fds:
                os.close(fds.pop())
            del buffer[:sent]
            if not buffer:
                self._out.popleft()

    def receive(self) -> list[Frame]:
        """The frames that are there, as (kind, payload, descriptor that came with it). Raises frames.FrameError."""
        taken, self.dry = 0, False
        while not self.eof and taken < _READ_AT_ONCE:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, _CHUNK, 16)
            except (BlockingIOError, InterruptedError):
                self.dry = True
                break
            except OSError:
                self.eof = True
                break
            self._fds.extend(fds)
            if not data:
                self.eof = True
            self._in += data
            taken += len(data)
            if len(data) < _CHUNK // 4 and not fds:
                break
        self.dry = self.dry or self.eof
        return self._parse()

    def _parse(self) -> list[Frame]:
        found: list[Frame] = []
        start, end = 0, len(self._in)
        with memoryview(self._in) as view:
            while end - start >= frames.HEAD.size:
                size, kind = frames.HEAD.unpack_from(view, start)
                if size > self._limit:
                    if not found:
                        raise frames.FrameError(f"a frame of {size:,} bytes is over the limit of {self._limit:,}")
                    self.spoiled = True  # those before it are what they should be, and count
                    break
                stop = start + frames.HEAD.size + size
                if stop > end:
                    break
                fd = self._fds.popleft() if kind & frames.WITH_FD and self._fds else None
                found.append((kind & ~frames.WITH_FD, bytes(view[start + frames.HEAD.size : stop]), fd))
                start = stop
        del self._in[:start]
        return found

    @property
    def unread(self) -> bytes:
        """What has arrived of a frame that is not complete."""
        return bytes(self._in)

    def feed(self, data: bytes) -> None:
        """Puts bytes before all that is still to come, as if they had just arrived."""
        self._in[:0] = data

    def close(self) -> None:
        """Closes the socket and every descriptor that nobody took."""
        self.eof = True
        for fd in (*self._fds, *(fd for _, fds in self._out for fd in fds)):
            os.close(fd)
        self._fds.clear()
        self._out.clear()
        self._sock.close()
