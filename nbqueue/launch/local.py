"""The local worker: started detached beside the private server, once for all sessions of this user on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from nbqueue.model import WorkerInfo, worker_info
from nbqueue.settings import born, cpus, host

IDLE = 900  # seconds without work after which it leaves
LEAVE = 10.0  # seconds that workers get to give back what they hold
BOOT = 20.0  # seconds that a started worker may take to join
LOGIN_SLOTS, LOGIN_NICE = 2, 10

# What belongs to a terminal, a desktop, a kernel or nbqueue itself.
_OWN = frozenset(
    (
        *("_", "PWD", "OLDPWD", "SHLVL", "PS1", "TTY", "STY", "COLUMNS", "LINES", "HISTFILE", "LS_COLORS", "GPG_TTY"),
        *("TERM", "COLORTERM", "FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PAGER", "GIT_PAGER", "EDITOR"),
        *("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "WINDOWID", "SESSION_MANAGER", "MPLBACKEND", "GIT_ASKPASS"),
        *("INVOCATION_ID", "JOURNAL_STREAM", "MANAGERPID", "SYSTEMD_EXEC_PID"),
    )
)
_OWN_PREFIXES = (
    *("NBQUEUE_", "JPY_", "JUPYTER", "KERNEL_", "IPYTHON", "PYDEVD_", "PYTEST_", "VSCODE_", "COLAB_"),
    *(
        "SSH_",
        "XDG_",
        "DBUS_",
        "TERM_",
        "TMUX",
        "VTE_",
        "GNOME_",
        "KDE_",
        "KITTY_",
        "ITERM_",
        "LESS",
        "MEMORY_PRESSURE_",
    ),
)

_SCHEDULERS = ("sbatch", "qsub", "bsub")
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


_Views = Sequence[tuple[bytes, float, int]]


class Workers(Protocol):
    """Whoever knows the live workers."""

    def workers(self) -> _Views:
        """(info, seconds of lease left, jobs held) of each."""


class Lost(NamedTuple):
    """A worker of this machine that has died while it held jobs."""

    pid: int
    left: float  # seconds until its lease ends
    held: int


class Begun(NamedTuple):
    """A worker that was just started."""

    pid: int
    slots: int
    why: str  # a word on an unusual number of slots, or empty
    lost: Lost | None = None  # whose place it takes, since it has died
    before: tuple[WorkerInfo, ...] = ()  # whose place it takes, though they live


class _Noted(NamedTuple):
    """The worker that was started last."""

    pid: int
    at: float  # time.time() of its start
    slots: int
    salt: str
    environ: dict[str, str]  # a digest of each variable that it was started with


def on_login_node() -> bool:
    """Whether this is a cluster's shared door: a scheduler's command is there, and we are in no allocation."""
    if any(name in os.environ for name in _ALLOCATIONS):
        return False
    return any(shutil.which(command) for command in _SCHEDULERS)


def ensure(folder: Path, url: str, namespace: str, broker: Workers, slots: int | None = None) -> Begun | None:
    """Starts a local worker unless one lives or is just starting; answers what was started. Raises OSError."""
    with _locked(folder):
        workers = broker.workers()
        noted = _noted(folder)
        # One that is not noted may be on its way out: see resize.
        if _starting(folder) or (noted is not None and noted.pid in {info.pid for info in _local(workers)}):
            return None
        login = on_login_node()
        count = slots or (LOGIN_SLOTS if login else cpus())
        why = " (low priority: this looks like a login node)" if login else ""
        return Begun(_begin(folder, url, namespace, count), count, why, _lost(workers))


def resize(folder: Path, url: str, namespace: str, broker: Workers, slots: int) -> Begun | None:
    """Starts a worker of so many slots in the place of those that live; None where the last started has as many.

    Those before it are to be told to leave: they are in the answer, but for one that has not joined, which is ended.
    """
    with _locked(folder):
        noted = _noted(folder)
        if noted is None or noted.slots == slots:
            return None
        before = tuple(_local(broker.workers()))
        pid = _begin(folder, url, namespace, slots)
    if noted.pid not in {info.pid for info in before}:
        with suppress(ProcessLookupError):
            os.kill(noted.pid, signal.SIGTERM)
    return Begun(pid, slots, "", before=before)


def _begin(folder: Path, url: str, namespace: str, slots: int) -> int:
    pid = _start(folder, url, namespace, slots, nice=LOGIN_NICE if on_login_node() else 0)
    _note(folder, pid, slots)
    return pid


def _lost(workers: _Views) -> Lost | None:
    """Of those that died with jobs in their hands the one whose jobs come back last."""
    found = [Lost(each.pid, left, held) for each, left, held in _ours(workers) if held and left > 0]
    return max(found, key=lambda each: each.left, default=None)


def _ours(workers: _Views) -> Iterator[tuple[WorkerInfo, float, int]]:
    """The local workers of this machine, of which some may have died."""
    for blob, left, held in workers:
        info = worker_info(blob)
        if info is not None and info.local and info.host == host():
            yield info, left, held


def command(slots: int) -> list[str]:
    """The words that start a worker for every queue of a private server, whose URL the environment holds.

    It may have a password, and a command line can be read by everyone.
    """
    words = [sys.executable, "-m", "nbqueue", "worker", "--local"]
    return [*words, "--slots", str(slots), "--max-idle", str(IDLE), "*"]


def _start(folder: Path, url: str, namespace: str, slots: int, *, nice: int) -> int:
    # Its own session and a log file for its output: it outlives the notebook, and Ctrl-C does not reach it.
    words = command(slots)
    if nice:
        words = ["nice", "-n", str(nice), *words]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JPY_")}
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=kept | {"NBQUEUE_NAMESPACE": namespace, "NBQUEUE_URL": url},
        )
    _children.append(process)
    return process.pid


_children: list[subprocess.Popen[bytes]] = []  # polled, so that a child that left is no zombie


# ---------------------------------------------------------------- who was started when


def _note(folder: Path, pid: int, slots: int) -> None:
    salt = secrets.token_hex(8)
    digests = {name: _digest(salt, value) for name, value in os.environ.items()}
    noted = {"pid": pid, "born": born(pid), "at": time.time(), "slots": slots, "salt": salt, "environ": digests}
    with open(folder / "worker.json", "w", opener=_privately) as file:
        json.dump(noted, file)


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _digest(salt: str, value: str) -> str:
    """Tells whether a value is another one by now; the values themselves, which may be passwords, are kept nowhere."""
    return hashlib.blake2b(os.fsencode(value), key=salt.encode(), digest_size=8).hexdigest()


def _starting(folder: Path) -> bool:
    """Whether a worker was started so short ago that it may not have joined yet."""
    noted = _noted(folder)
    return noted is not None and time.time() - noted.at < BOOT


def _noted(folder: Path) -> _Noted | None:
    """The last worker started here, if that very process lives."""
    try:
        noted = json.loads((folder / "worker.json").read_text())
        since, facts = str(noted["born"]), (int(noted["pid"]), float(noted["at"]), int(noted["slots"]))
        found = _Noted(*facts, str(noted.get("salt", "")), dict(noted.get("environ", {})))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # none was started, or the file is cut short: then the store's list decides
    return found if since and born(found.pid) == since else None


def stamp(folder: Path) -> int:
    """What changes when another worker is started."""
    try:
        return (folder / "worker.json").stat().st_mtime_ns
    except OSError:
        return 0


def differing(folder: Path) -> dict[str, str | None]:
    """The variables that this process has otherwise than the local worker was started with; None: it has none.

    Those of a terminal, a desktop or a kernel are left out: they tell nothing to a job, and each kernel has others.
    """
    noted = _noted(folder)
    if noted is None or not noted.environ:
        return {}
    found: dict[str, str | None] = {
        name: value for name, value in os.environ.items() if noted.environ.get(name) != _digest(noted.salt, value)
    }
    found |= dict.fromkeys(noted.environ.keys() - os.environ.keys())
    return {name: found[name] for name in sorted(found) if not (name in _OWN or name.startswith(_OWN_PREFIXES))}


def alive(pid: int) -> bool:
    """Whether a process of this machine lives; a zombie does not."""
    for child in list(_children):
        if child.poll() is not None:
            _children.remove(child)
    return bool(born(pid))


def stop(folder: Path, broker: Workers) -> list[int]:
    """Asks the local workers of this machine to leave (SIGTERM); answers their process ids."""
    pids = {info.pid for info in _local(broker.workers())}
    noted = _noted(folder)
    if noted is not None:
        pids.add(noted.pid)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue  # it has just left
    return sorted(pids)


def dismiss(folder: Path) -> None:
    """Asks the worker that was started here to leave, and waits until it has; nobody needs to reach the server."""
    noted = _noted(folder)
    if noted is None:
        return
    with suppress(ProcessLookupError):
        os.kill(noted.pid, signal.SIGTERM)
    until_gone([noted.pid])


def until_gone(pids: Sequence[int]) -> None:
    """Waits until these processes have ended, for LEAVE seconds at most."""
    end = time.monotonic() + LEAVE
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)


def _local(workers: _Views) -> list[WorkerInfo]:
    """The local workers of this machine that live."""
    # Its lease may outlast a worker that was killed; on this host we can see for ourselves.
    return [info for info, *_ in _ours(workers) if alive(info.pid)]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Of two notebooks that start at the same moment, one goes first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "worker.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
