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
from nbqueue.model import Cause, Echo, Failure, Ride, State
from nbqueue.perform import type_name
from nbqueue.worker.horse import MUTE
from nbqueue.worker.limits import overdue
from nbqueue.worker.slots import Errand, Mount

_KB = 1 if sys.platform == "linux" else 1024


class Obituary:
    """Writes certificates. It remembers how often the kernel had killed for memory, to know its hand."""

    def __init__(self) -> None:
        self._kills = _memory_kills()

    def certify(self, mount: Mount, status: int, usage: resource.struct_rusage) -> Ride:
        """The Ride of the call that `mount` was in when it ended."""
        call = mount.calls[mount.reported]
        code = os.waitstatus_to_exitcode(status)
        begun = mount.slot.board.last_began()
        cause, failure = self._judge(mount, code)
        alone = mount.reported == 0
        spent = usage.ru_utime + usage.ru_stime
        now = time.monotonic()
        if cause is Cause.TIMEOUT:
            limit, run = call.run.timeout or 0.0, call.run
            text = overdue(run.label, call.job, limit, run.timeout_from, run.grace)
            failure = Failure(type_name(JobTimeout), text, pickled=wire.dumps(JobTimeout(text), 1 << 20))
        return Ride(
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
            self._kills = min(self._kills + 1, _memory_kills())

    def echo(self, mount: Mount, errand: Errand, status: int) -> Echo:
        """What is said of the step of an errand that `mount` was in when it ended."""
        step = errand.steps[len(errand.echoes)]
        cause, failure = self._judge(mount, os.waitstatus_to_exitcode(status), step.name)
        if cause is Cause.TIMEOUT:
            text = overdue(step.name, errand.call.job, step.timeout, "", errand.call.run.grace)
            failure = Failure(type_name(JobTimeout), text)
        return Echo(step.kind, step.label, failure)

    def _judge(self, mount: Mount, code: int, what: str = "the job") -> tuple[Cause, Failure | None]:
        if mount.overdue:
            return Cause.TIMEOUT, None
        if code == -signal.SIGKILL:
            kills = _memory_kills()
            if kills > self._kills:
                self._kills = kills
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
    why = ": invalid memory access, or a stack overflow" if -code == signal.SIGSEGV else ""
    return f"{what}'s process was killed by signal {-code} ({name}){why}"


def _memory_kills() -> int:
    """How many processes the kernel has killed for memory: in our cgroup where it tells, else on the machine."""
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        text = (Path("/sys/fs/cgroup") / group / "memory.events").read_text()
    except OSError:
        try:
            text = Path("/proc/vmstat").read_text()
        except OSError:
            return 0  # not Linux
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
