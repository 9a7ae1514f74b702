"""The spool's folder: file naming, listing, and the order of eviction."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from nbqueue.client.spool import records
from nbqueue.client.spool.records import SUFFIX, BatchHeader, Checkpoint, RecordReader, RecordType
from nbqueue.errors import BadSignature

_SINGLES = "~singles~"  # ids contain no `~`
_DAY_US = 86_400_000_000
_IDLE = 86_400.0  # seconds without a write after which a file of single jobs counts as done


class SpooledFiles(NamedTuple):
    """The files of one batch (or of one session's single jobs), their size in bytes, and the time of the last write."""

    key: str
    paths: list[Path]
    size: int
    written: float

    @property
    def single(self) -> bool:
        """Whether these files hold single jobs."""
        return self.key.startswith(_SINGLES)

    @property
    def batch(self) -> str:
        """The batch's id, or `single jobs`."""
        return "single jobs" if self.single else self.key

    @property
    def done(self) -> bool:
        """Whether the batch had ended at its last checkpoint."""
        if self.single:
            return time.time() - self.written > _IDLE
        checkpoint = self.checkpoint()
        return checkpoint is not None and checkpoint.over

    def checkpoint(self) -> Checkpoint | None:
        """The latest checkpoint of the batch, if there is one."""
        return max((s for s in map(checkpoint_of, self.paths) if s), key=lambda each: each.written_at, default=None)

    def header(self) -> BatchHeader | None:
        """The batch's header; None for single jobs, and if no file can be read."""
        if self.single:
            return None
        return next((found for path in self.paths for found in records.headers_of(path)), None)


def path(folder: Path, batch: str, nonce: str, session: str) -> Path:
    """The file of one session for a batch, or for its single jobs."""
    stem = f"{batch}~{nonce}~" if batch else _SINGLES
    return folder / f"{stem}{session}{SUFFIX}"


def files_of(folder: Path, batch: str) -> list[Path]:
    """The files of all sessions for the batches of this id."""
    # Ids contain no wildcards: see check_name.
    return _sorted(folder.glob(f"{batch}~*{SUFFIX}"))


def same_batch(one: BatchHeader, other: BatchHeader) -> bool:
    """Whether two headers describe one batch, and not two batches that were given the same id."""
    if one.single or other.single:
        return one.nonce == other.nonce
    # The nonce changes when another user adds jobs; clocks may be hours off.
    return one.nonce == other.nonce or abs(one.created_us - other.created_us) < _DAY_US


def copies_of(folder: Path, header: BatchHeader) -> list[Path]:
    """The files of all sessions for this batch, without those of another batch with the same id."""
    return [
        each
        for each in files_of(folder, header.batch)
        if any(same_batch(header, one) for one in records.headers_of(each))
    ]


def single_files(folder: Path) -> list[Path]:
    """The single-job files of all sessions."""
    return _sorted(folder.glob(f"{_SINGLES}*{SUFFIX}"))


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """Sorted by the time of the last write."""
    stamped = []
    for each in paths:
        try:
            stamped.append((each.stat().st_mtime, each))
        except FileNotFoundError:
            continue  # removed meanwhile
    return [each for _, each in sorted(stamped)]


def list_batches(folder: Path) -> list[SpooledFiles]:
    """All batches in a spool, the oldest first."""
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
            continue  # removed meanwhile
    found = [
        SpooledFiles(key, [p for p, _ in each], sum(s.st_size for _, s in each), max(s.st_mtime for _, s in each))
        for key, each in groups.items()
        if each
    ]
    return sorted(found, key=lambda one: one.written)


def batches_in(one: SpooledFiles) -> set[str]:
    """The ids of all batches in these files."""
    found: set[str] = set()
    for path in one.paths:
        try:
            for record in RecordReader(path):
                if record.record_type == RecordType.HEADERS:
                    found.update(header.batch for header in record.read(records.Headers).headers)
        except (OSError, BadSignature):
            continue  # the rest of the file cannot be read
    return found


def checkpoint_of(file: Path) -> Checkpoint | None:
    """The last checkpoint in one file."""
    found = None
    try:
        for record in RecordReader(file):
            if record.record_type == RecordType.CHECKPOINT:
                found = record.read(Checkpoint)
    except (OSError, BadSignature):
        return found
    return found


def remove(paths: Sequence[Path]) -> int:
    """Removes files; returns the number of bytes freed."""
    freed = 0
    for each in paths:
        records.close_cached(each)
        try:
            freed += each.stat().st_size
            each.unlink()
        except FileNotFoundError:
            continue  # already removed by another session
    return freed


def evict(folder: Path, cap: int, in_use: set[Path]) -> tuple[list[str], int]:
    """Removes done batches, the oldest first, until the spool is within its cap; returns their ids and the size left.

    Files in `in_use` are being written and stay.
    """
    found = list_batches(folder)
    size, dropped = sum(one.size for one in found), []
    for one in found:
        if size <= cap:
            break
        if in_use.isdisjoint(one.paths) and one.done:
            size -= remove(one.paths)
            dropped.append(one.batch)
    return dropped, size
