"""The marks of a named batch: 16 bytes a job, by which the same arguments are known again in another session.

They are keyed with the user's secret and salted by the batch, so that they tell nothing about arguments, not even
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
    """The marks of a submission's calls; they are looked at as they are read."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self.key, self.salt = key[:64], salt
        self.doubts: list[tuple[int, str]] = []  # calls that cannot be compared, and why
        self._raws: list[bytes] = []

    def __len__(self) -> int:
        return len(self._raws)

    def reading(self, rows: Iterable[Call]) -> Iterator[Call]:
        """The same calls, each looked at on the way."""
        for index, call in enumerate(rows):
            try:
                self._raws.append(_digest(call))
            except NotComparable as why:
                self.doubts.append((index, str(why)))
                self._raws.append(secrets.token_bytes(SIZE))  # like no other
            yield call

    def of(self, index: int) -> bytes:
        """The mark of a call."""
        return hashlib.blake2b(self._raws[index], digest_size=SIZE, key=self.key, salt=self.salt).digest()

    def span(self, start: int, stop: int) -> bytes:
        """The marks of some calls, one after the other."""
        return b"".join(self.of(index) for index in range(start, min(stop, len(self._raws))))

    def matched(self, stored: bytes, n: int) -> list[int | None]:
        """For each call the index of a job of its own that has these arguments; None where there is none.

        Equal calls take the jobs of equal arguments in their order.
        """
        places: dict[bytes, deque[int]] = {}
        for index in range(min(n, len(stored) // SIZE)):
            places.setdefault(stored[SIZE * index : SIZE * (index + 1)], deque()).append(index)
        found: list[int | None] = []
        for index in range(len(self._raws)):
            free = places.get(self.of(index))
            found.append(free.popleft() if free else None)
        return found


def _digest(call: Call) -> bytes:
    """Of the arguments only: the label of a row is not what a job runs on."""
    args, kwargs, _ = call
    named = sorted(kwargs.items())
    first, rest = plain(args), plain([each for pair in named for each in pair])
    if first is not None and rest is not None:
        return joined("call", first, rest)
    digester = Fingerprinter()
    return joined("objects", *map(digester.of, args), b"", *(digester.of(each) for pair in named for each in pair))


def shortened(rows: Sequence[int]) -> Sequence[int]:
    """The same indexes, as a range where they are one."""
    return range(len(rows)) if all(place == index for place, index in enumerate(rows)) else tuple(rows)
