"""Finding what a dead worker left behind.

Every stable is started with an environment mark that names its worker's process; /proc shows it for all that the
stable forks, however they daemonise. At its start a worker kills what carries the mark of a worker that is no more.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from nbqueue.settings import born

MARK = "NBQUEUE_MARK"
_PROC = Path("/proc")


def own_mark(worker: str) -> str:
    """The mark of this process's stables."""
    pid = os.getpid()
    return f"{worker}/{pid}/{born(pid)}/{_namespace()}"


def _namespace() -> str:
    """The namespace that process numbers here belong to: a container's are not its host's."""
    try:
        return (_PROC / "self/ns/pid").readlink().name
    except OSError:
        return ""


def carriers() -> Iterator[tuple[int, str]]:
    """`(pid, mark)` of every process of this user that carries a mark."""
    if not _PROC.is_dir():
        return
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (mark := mark_of(int(entry.name))):
            yield int(entry.name), mark


def mark_of(pid: int) -> str:
    """The mark that a process carries; empty if it has none, is gone, or is another user's."""
    needle = f"{MARK}=".encode()
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return ""
    return next(
        (item[len(needle) :].decode("utf-8", "replace") for item in environ.split(b"\0") if item.startswith(needle)), ""
    )


def sweep() -> int:
    """Kills what carries the mark of a worker that is no more; returns how many processes that were."""
    killed = 0
    for pid, mark in carriers():
        _, owner, since, namespace = [*mark.split("/"), "", "", ""][:4]
        if not owner.isdigit() or not since or namespace != _namespace() or born(int(owner)) == since:
            continue
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            continue  # another user's process that we may see but not touch
        killed += 1
    return killed
