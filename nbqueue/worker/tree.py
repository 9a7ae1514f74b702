"""Processes under a process: finding, freezing and ending them, whatever they did to get away.

On Linux stable and horse are subreapers: what a job's children leave behind comes to its horse, and what a dead horse
leaves comes to the stable. Elsewhere a process group stands for the tree.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

LINUX = sys.platform == "linux"
HORSE, SPARE = b"nbqueue-horse", b"nbqueue-spare"  # what horses are called in lists of processes
_PDEATHSIG, _SET_NAME, _CHILD_SUBREAPER = 1, 15, 36
_ROUNDS = 50  # a tree that still grows after so many looks is looked at again in the next turn


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if LINUX else None


def become_subreaper(*, wanted: bool = True) -> None:
    """Orphans among this process's descendants become its children; or no longer do."""
    if (libc := _libc()) is not None:
        libc.prctl(_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def die_with(parent: int | None) -> None:
    """Kills this process when `parent`, which forked it, ends; None: no longer."""
    libc = _libc()
    if libc is None:
        return
    libc.prctl(_PDEATHSIG, 0 if parent is None else signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it ended before we asked


def childless() -> Callable[[], bool]:
    """What tells whether this process has no child, not even one that has ended and was not reaped."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    if LINUX:
        waitid = ctypes.CDLL(None).waitid  # Python's own makes an exception of it, which takes twice as long
        return lambda: bool(waitid(os.P_ALL, 0, None, how))

    def none() -> bool:
        try:
            os.waitid(os.P_ALL, 0, how)
        except ChildProcessError:
            return True
        return False

    return none


def rename(name: bytes) -> None:
    """Gives this process another name in lists of processes."""
    if (libc := _libc()) is not None:
        libc.prctl(_SET_NAME, name, 0, 0, 0)


_lean = False  # whether the fork that goes on is one of a process with a single thread


@contextlib.contextmanager
def lean_forks() -> Iterator[None]:
    """Functions that modules register for forks, as they are imported in here, are left out of lean forks.

    Those of threading and logging touch a tenth of the pages that a horse copies, to free locks that other threads may
    have held. What a job forks calls them.
    """
    register = os.register_at_fork

    def unless_lean(function: Callable[[], object]) -> Callable[[], object]:
        return lambda: None if _lean else function()

    os.register_at_fork = lambda **given: register(**{when: unless_lean(each) for when, each in given.items()})
    try:
        yield
    finally:
        os.register_at_fork = register


def is_lean(*, lean: bool) -> None:
    """Says whether a fork that follows is lean; only of a process with a single thread."""
    global _lean  # noqa: PLW0603 - it is of the process
    _lean = lean and not _thread._count()  # noqa: SLF001 - of threads besides the first


def is_dead_horse(pid: int) -> bool:
    """Whether a process that has ended, and was not reaped, was a horse: its name is what is left to tell it by."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_bytes().partition(b"(")[2].rpartition(b")")
    except OSError:
        return False
    return rest.split()[0] == b"Z" and name in (HORSE, SPARE)


def make_way() -> None:
    """Lets those go first who wait for the processor that this process is on."""
    if LINUX:
        os.sched_yield()


def children(pid: int | None = None) -> list[int]:
    """The children of a process (this one by default), zombies included."""
    pid = os.getpid() if pid is None else pid
    try:
        found: list[int] = []
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - the hot path of every horse's end
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:  # noqa: PTH123 - as above
                found += map(int, file.read().split())
    except OSError:
        return [] if LINUX and Path(f"/proc/self/task/{os.getpid()}/children").exists() else _children_by_ps(pid)
    return found


def _children_by_ps(pid: int) -> list[int]:
    import subprocess  # what is not imported need not be forked

    try:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []  # without /proc and ps, the process group is all that can be reached
    pairs = (line.split() for line in listing.stdout.splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid and child != str(pid)]


def descendants(pid: int) -> list[int]:
    """All processes under `pid`, parents before their children."""
    found = children(pid)
    for each in found:
        found += children(each)
    return found


def send(pid: int, signum: int) -> None:
    """Sends a signal to a process that may be gone."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass  # it is gone, as it should be
    except PermissionError:
        pass  # it became another user's (sudo): it is no longer ours to end


def freeze(pid: int) -> None:
    """Stops a process and all under it: parents first, so that none can fork on."""
    send(pid, signal.SIGSTOP)
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        fresh = [each for each in descendants(pid) if each not in stopped]
        if not fresh:
            return
        for each in fresh:
            send(each, signal.SIGSTOP)
        stopped.update(fresh)


def thaw(pid: int) -> None:
    """Lets a process and all under it go on: children first."""
    for each in reversed(descendants(pid)):
        send(each, signal.SIGCONT)
    send(pid, signal.SIGCONT)


def kill_strays(known: Collection[int], ours: Callable[[int], bool] = lambda _pid: True) -> bool:
    """Kills and reaps every child of this process that is `ours` and not among `known`; True when none is left.

    Killing one may bring its children here, so it looks again until there is nothing new.
    """
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        strays = [pid for pid in children() if pid not in known and (pid in killed or ours(pid))]
        if not strays:
            return True
        for pid in strays:
            if pid not in killed:
                send(pid, signal.SIGKILL)
                killed.add(pid)
        _reap(strays)
    return False


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # someone else has reaped it


def kill_group(pid: int) -> None:
    """Kills a horse: itself, and where there are no subreapers, its process group."""
    if not LINUX:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or is about to
            os.killpg(pid, signal.SIGKILL)
    send(pid, signal.SIGKILL)
