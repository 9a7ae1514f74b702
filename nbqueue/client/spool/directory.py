"""The files of a spool's folder: how they are called, which batch they belong to, and which go first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from nbqueue.client.spool import records
from nbqueue.client.spool.records import SUFFIX, BatchHeader, Checkpoint, RecordReader, RecordType
from nbqueue.errors import BadSignature

_SINGLES = "~singles~"  # no id has this sign in it
_DAY_US = 86_400_000_000
_RESTING = 86_400.0  # seconds after which a file of single jobs, to which nothing is added, counts as done


class SpooledFiles(NamedTuple):
    """The files of one batch (or of the single jobs of one session), their bytes, and when one was written last."""

    key: str
    paths: list[Path]
    size: int
    written: float

    @property
    def single(self) -> bool:
        """Whether it is of single jobs."""
        return self.key.startswith(_SINGLES)

    @property
    def batch(self) -> str:
        """The batch's id; for single jobs a few words."""
        return "single jobs" if self.single else self.key

    @property
    def done(self) -> bool:
        """Whether the batch had ended when it was written of last."""
        if self.single:
            return time.time() - self.written > _RESTING
        standing = self.standing()
        return standing is not None and standing.over

    def standing(self) -> Checkpoint | None:
        """How the batch stood last, if that was noted."""
        return max((s for s in map(standing_of, self.paths) if s), key=lambda each: each.told, default=None)

    def birth(self) -> BatchHeader | None:
        """What the batch is; None for single jobs, and where no file can be read."""
        if self.single:
            return None
        return next((found for path in self.paths for found in records.births(path)), None)


def path(folder: Path, batch: str, nonce: str, mark: str) -> Path:
    """The file of one session for a batch, or for its single jobs."""
    stem = f"{batch}~{nonce}~" if batch else _SINGLES
    return folder / f"{stem}{mark}{SUFFIX}"


def files_of(folder: Path, batch: str) -> list[Path]:
    """The files of all sessions for the batches of this id."""
    # Ids have none of the signs of a pattern in them: see check_name.
    return _sorted(folder.glob(f"{batch}~*{SUFFIX}"))


def same(one: BatchHeader, other: BatchHeader) -> bool:
    """Whether two files tell of one batch, and not of two that happened to be given the same id."""
    if one.single or other.single:
        return one.nonce == other.nonce
    # The nonce is another one after somebody else has added jobs; clocks may be hours off.
    return one.nonce == other.nonce or abs(one.created_us - other.created_us) < _DAY_US


def copies_of(folder: Path, birth: BatchHeader) -> list[Path]:
    """The files of all sessions for just this batch."""
    return [each for each in files_of(folder, birth.batch) if any(same(birth, one) for one in records.births(each))]


def single_files(folder: Path) -> list[Path]:
    """The files of all sessions for their single jobs."""
    return _sorted(folder.glob(f"{_SINGLES}*{SUFFIX}"))


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """In the order in which they were written last."""
    stamped = []
    for each in paths:
        try:
            stamped.append((each.stat().st_mtime, each))
        except FileNotFoundError:
            continue  # removed this moment
    return [each for _, each in sorted(stamped)]


def kept(folder: Path) -> list[SpooledFiles]:
    """What is in a spool, the oldest first."""
    groups: dict[str, list[tuple[Path, os.stat_result]]] = {}
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    for entry in entries:
        if not entry.name.endswith(SUFFIX) or "~" not in entry.name:
            continue
        key = entry.name if entry.name.startswith(_SINGLES) else entry.name.partition("~")[0]
        try:
            groups.setdefault(key, []).append((folder / entry.name, entry.stat()))
        except FileNotFoundError:
            continue  # removed this moment
    found = [
        SpooledFiles(key, [p for p, _ in each], sum(s.st_size for _, s in each), max(s.st_mtime for _, s in each))
        for key, each in groups.items()
        if each
    ]
    return sorted(found, key=lambda one: one.written)


def batches_in(one: SpooledFiles) -> set[str]:
    """The ids of all batches that these files tell of."""
    found: set[str] = set()
    for path in one.paths:
        try:
            for record in RecordReader(path):
                if record.kind == RecordType.BORN:
                    found.update(birth.batch for birth in record.read(records.Headers).births)
        except (OSError, BadSignature):
            continue  # it tells of nothing more
    return found


def standing_of(file: Path) -> Checkpoint | None:
    """How a batch stood last, by one file."""
    found = None
    try:
        for record in RecordReader(file):
            if record.kind == RecordType.STATE:
                found = record.read(Checkpoint)
    except (OSError, BadSignature):
        return found
    return found


def remove(paths: Sequence[Path]) -> int:
    """Removes files; answers how many bytes that were."""
    freed = 0
    for each in paths:
        records.let_go(each)
        try:
            freed += each.stat().st_size
            each.unlink()
        except FileNotFoundError:
            continue  # another session was first
    return freed


def shrink(folder: Path, cap: int, keep: set[Path]) -> tuple[list[str], int]:
    """Drops done batches, the oldest first, until the spool is within its cap; answers their ids and the size left.

    The files in `keep` are being written.
    """
    found = kept(folder)
    size, dropped = sum(one.size for one in found), []
    for one in found:
        if size <= cap:
            break
        if keep.isdisjoint(one.paths) and one.done:
            size -= remove(one.paths)
            dropped.append(one.batch)
    return dropped, size
