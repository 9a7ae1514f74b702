"""What a job prints: one pipe a horse for stdout and stderr, and of each job the last of it.

At the end of every job the horse writes a mark, which only it and the stable know, into the pipe. So the stable can
tell whose output it reads, down to what C code and child processes write, also where one horse serves many jobs.
"""

from __future__ import annotations

import io
import os
import sys
from collections import deque

from nbqueue.model import TAIL_FAILED, TAIL_FINISHED

PIPE = 1 << 16
_READS_AT_ONCE = 32


class _Errors(io.TextIOWrapper):
    """Standard error, which lets standard output go first: what is printed stays in order."""

    output: io.TextIOWrapper

    def write(self, text: str) -> int:
        """Writes `text`, after what standard output still holds."""
        if not self.output.closed:
            self.output.flush()
        return super().write(text)


def open_streams() -> None:
    """Gives this process text streams on descriptors 1 and 2, line by line, for forks to inherit."""
    out, err = (io.BufferedWriter(io.FileIO(fd, "w", closefd=False)) for fd in (1, 2))
    sys.stdout = io.TextIOWrapper(out, "utf-8", "backslashreplace", line_buffering=True)
    sys.stderr = _Errors(err, "utf-8", "backslashreplace", line_buffering=True)
    sys.stderr.output = sys.stdout


def shorten(tail: bytes, limit: int) -> bytes:
    """The last whole lines of `tail` that fit into `limit` bytes (of an endless line, its end)."""
    if len(tail) <= limit:
        return tail
    cut = tail[-limit:]
    end = cut.find(b"\n")
    return cut[end + 1 :] if 0 <= end < len(cut) - 1 else cut


def tail_for(tail: bytes, *, failed: bool) -> bytes:
    """What is kept of a job's output."""
    return shorten(tail, TAIL_FAILED if failed else TAIL_FINISHED)


class Output:
    """The reading end of a horse's output: splits it by job, in bounded memory."""

    def __init__(self, fd: int, mark: bytes) -> None:
        self._fd = fd
        self._mark = mark
        self._rest = b""  # may be the beginning of a mark
        self._tail = bytearray()
        self._ended: deque[bytes] = deque()
        self.eof = False

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._fd

    def read(self) -> None:
        """Takes in what is there, but not more than keeps others waiting."""
        for _ in range(_READS_AT_ONCE):
            if not self._read_one():
                return

    def _read_one(self) -> bool:
        try:
            data = os.read(self._fd, PIPE)
        except BlockingIOError:
            return False
        if not data:
            self.eof = True
            return False
        self._split(data)
        return len(data) == PIPE

    def take(self) -> bytes:
        """The tail of the next job that has ended, and whose mark is in the pipe by now."""
        while not self._ended:
            before = len(self._rest), len(self._tail)
            if not self._read_one() and not self._ended and before == (len(self._rest), len(self._tail)):
                return self.last()  # the job closed our descriptor: no mark will come
        return self._ended.popleft()

    def last(self) -> bytes:
        """All that came after the last mark; the output of a job that died."""
        tail = bytes(self._tail) + self._rest
        self._tail.clear()
        self._rest = b""
        return tail

    def drain(self) -> None:
        """Takes in what the pipe holds (after the horse's end; what may still come is not waited for)."""
        for _ in range(_READS_AT_ONCE):
            if not self._read_one():
                return

    def _split(self, data: bytes) -> None:
        *ended, rest = (self._rest + data).split(self._mark)
        for part in ended:
            if part or self._tail:
                self._add(part)
                self._ended.append(bytes(self._tail))
                self._tail.clear()
            else:
                self._ended.append(b"")
        keep = len(self._mark) - 1
        self._add(rest[:-keep])
        self._rest = rest[-keep:]

    def _add(self, part: bytes) -> None:
        self._tail += part
        if len(self._tail) > 2 * TAIL_FAILED:
            del self._tail[: -TAIL_FAILED - 1]  # over the limit by a byte, so that it will be cut at a line

    def close(self) -> None:
        """Closes the pipe: who still writes into it gets SIGPIPE."""
        os.close(self._fd)
