"""Argument hashes of a named batch: 16 bytes per job, by which another session recognises the same arguments.

They are keyed with the user's secret and salted per batch, so that they reveal nothing about the arguments, not even
whether two batches share some.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from nbqueue.client.calls.fingerprint import SIZE, Fingerprinter, NotComparable, joined, plain
from nbqueue.client.calls.items import Call


class ArgumentHashes:
    """The hashes of a submission's calls, computed while the calls are read."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self.key, self.salt = key[:64], salt
        self.doubts: list[tuple[int, str]] = []  # calls that cannot be compared, and why
        self._raws: list[bytes] = []

    def __len__(self) -> int:
        return len(self._raws)

    def reading(self, rows: Iterable[Call]) -> Iterator[Call]:
        """Yields the calls unchanged, and hashes each."""
        for index, call in enumerate(rows):
            try:
                self._raws.append(_digest(call))
            except NotComparable as why:
                self.doubts.append((index, str(why)))
                self._raws.append(secrets.token_bytes(SIZE))  # matches no other call
            yield call

    def of(self, index: int) -> bytes:
        """The hash of one call."""
        return hashlib.blake2b(self._raws[index], digest_size=SIZE, key=self.key, salt=self.salt).digest()

    def span(self, start: int, stop: int) -> bytes:
        """The hashes of a range of calls, concatenated."""
        return b"".join(self.of(index) for index in range(start, min(stop, len(self._raws))))

    def match(self, stored: bytes, n: int) -> list[int | None]:
        """For each call the index of a stored job with the same arguments, or None. Each job is used once, in order."""
        positions: dict[bytes, deque[int]] = {}
        for index in range(min(n, len(stored) // SIZE)):
            positions.setdefault(stored[SIZE * index : SIZE * (index + 1)], deque()).append(index)
        found: list[int | None] = []
        for index in range(len(self._raws)):
            free = positions.get(self.of(index))
            found.append(free.popleft() if free else None)
        return found


def _digest(call: Call) -> bytes:
    """Digest of the arguments. The row's label does not count: the job does not see it."""
    args, kwargs, _ = call
    named = sorted(kwargs.items())
    first, rest = plain(args), plain([each for pair in named for each in pair])
    if first is not None and rest is not None:
        return joined("call", first, rest)

    of = Fingerprinter().of
    return joined("objects", *map(of, args), b"", *(of(each) for pair in named for each in pair))


def shortened(rows: Sequence[int]) -> Sequence[int]:
    """The same indexes, as a range if they are 0 to n - 1."""
    return range(len(rows)) if all(position == index for position, index in enumerate(rows)) else tuple(rows)
