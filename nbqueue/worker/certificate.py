"""Death certificates: what is said of a call whose process ended before it reported."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

from nbqueue import wire
from nbqueue.errors import JobTimeout
from nbqueue.model import CallbackResult, CallResult, Cause, Failure, State
from nbqueue.perform import type_name
from nbqueue.worker.horse import MUTE
from nbqueue.worker.limits import overdue
from nbqueue.worker.slots import Errand, Mount

_KB = 1 if sys.platform == "linux" else 1024
_NEWER, _OLDER = "memory.events", "memory.oom_control"  # of a cgroup, by its version
_WHY: dict[int, str] = {
    signal.SIGSEGV: ": invalid memory access, or a stack overflow",
    signal.SIGXCPU: ": over the limit of CPU time (RLIMIT_CPU)",
}
_CHILDLESS = 2  # links of a folder without folders in it


class Obituary:
    """Writes certificates. It knows the kernel's hand by how often that has killed for memory."""

    def __init__(self, kills: Kills | None = None) -> None:
        self._counter = kills or Kills()
        self._kills = self.kills()  # those up to here are told

    def kills(self) -> int:
        """How often the kernel has killed for memory by now."""
        return self._counter.read()

    def certify(self, mount: Mount, status: int, usage: resource.struct_rusage) -> CallResult:
        """The CallResult of the call that `mount` was in when it ended."""
        call = mount.calls[mount.reported]
        code = os.waitstatus_to_exitcode(status)
        begun = mount.slot.board.last_began()
        cause, failure = self._judge(mount, code)
        alone = not mount.shared
        spent = usage.ru_utime + usage.ru_stime
        now = time.monotonic()
        if cause is Cause.TIMEOUT:
            limit, run = call.run.timeout or 0.0, call.run
            text = overdue(run.label, call.job, limit, run.timeout_from, run.grace)
            failure = Failure(type_name(JobTimeout), text, pickled=wire.dumps(JobTimeout(text), 1 << 20))
        return CallResult(
            State.FAILED,
            cause,
            begun,
            now,
            cpu_s=spent if alone else min(spent, now - begun),
            max_rss_kb=usage.ru_maxrss // _KB if alone else None,
            code=code,
            failure=failure,
        )

    def pass_over(self, status: int) -> None:
        """A horse has ended by itself, in no call: where the kernel killed it for memory, that speaks of no other."""
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            self._kills = min(self._kills + 1, self.kills())

    def echo(self, mount: Mount, errand: Errand, status: int) -> CallbackResult:
        """What is said of the step of an errand that `mount` was in when it ended."""
        step = errand.steps[len(errand.echoes)]
        cause, failure = self._judge(mount, os.waitstatus_to_exitcode(status), step.name)
        if cause is Cause.TIMEOUT:
            text = overdue(step.name, errand.call.job, step.timeout, "", errand.call.run.grace)
            failure = Failure(type_name(JobTimeout), text)
        return CallbackResult(step.kind, step.label, failure)

    def _judge(self, mount: Mount, code: int, what: str = "the job") -> tuple[Cause, Failure | None]:
        if mount.overdue:
            return Cause.TIMEOUT, None
        if mount.garbled:
            return Cause.CRASHED, Failure(
                "Crashed", f"{what} wrote into the descriptor that its outcome is sent through"
            )
        if code == -signal.SIGKILL:
            # Kills before it was there struck others; of those since, each explains one death.
            known = max(self._kills, mount.kills)
            if self.kills() > known:
                self._kills = known + 1
                return Cause.OOM, Failure("OutOfMemory", f"the kernel killed {what}'s process for its memory")
        return Cause.CRASHED, Failure("Crashed", describe(code, what))


def describe(code: int, what: str = "the job") -> str:
    """How the process of `what` ended, in words; `code` as in subprocess."""
    if code == MUTE:
        return f"{what} closed the descriptors of its process, so its outcome could not be sent"
    if code >= 0:
        return (
            f"{what}'s process ended itself with exit code {code} before the call returned"
            " (os._exit, or a library that ends the process)"
        )
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a real-time signal"
    return f"{what}'s process was killed by signal {-code} ({name}){_WHY.get(-code, '')}"


class Kills:
    """How many processes the kernel has killed for memory: in our cgroup where it tells, else on the machine."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where /proc and /sys lie."""
        self._machine = root / "proc/vmstat"
        self._newer, self._folder, self._top = _group(root)

    def read(self) -> int:
        """The number by now."""
        if self._folder is None:
            told = None
        elif self._newer:  # it counts what is below the group, too
            told = _count(self._folder / _NEWER)
        else:
            told = _count(self._folder / _OLDER)
            # Each group apart; a job may have made some below ours. The topmost one has the whole machine below it.
            if told is not None and self._folder != self._top and self._folder.stat().st_nlink > _CHILDLESS:
                told += sum(_count(file) or 0 for file in self._folder.glob(f"*/**/{_OLDER}"))
        return (_count(self._machine) or 0) if told is None else told


def _group(root: Path) -> tuple[bool, Path | None, Path]:
    """(whether it is of version 2, folder, topmost folder) of the group that accounts for our memory."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return False, None, top  # not Linux
    groups = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    older = next((path for names, path in groups.items() if "memory" in names.split(",")), None)
    if older is not None:
        top /= "memory"
    file = _NEWER if older is None else _OLDER
    parts = (older or groups.get("", "")).strip("/").split("/")
    # In a container the path may be that of its host, of which only the end, or nothing, lies below the folder.
    folders = (top.joinpath(*parts[start:]) for start in range(len(parts) + 1))
    return older is None, next((folder for folder in folders if (folder / file).exists()), None), top


def _count(file: Path) -> int | None:
    """The number of kills that a file tells; None where it does not (before Linux 4.13)."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
