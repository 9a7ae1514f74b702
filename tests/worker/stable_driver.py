"""Drives a real stable over a real socketpair, as the parent does."""

from __future__ import annotations

import os
import secrets
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import cloudpickle
import msgspec

from nbqueue import perform, wire
from nbqueue.model import MAX_FUNCTION, CallbackResult, CallResult, Failure, FunctionRecord, Hook, State, decode, encode
from nbqueue.worker import frames
from nbqueue.worker.channel import Channel
from nbqueue.worker.tree import SPARE

MARK = "NBQUEUE_MARK"


def alive_with(mark: str) -> list[int]:
    """Every process that carries the mark, zombies not counted."""
    found = []
    needle = f"{MARK}={mark}\0".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            carries = needle in (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if carries and state not in "ZX":
            found.append(int(entry.name))
    return found


def is_spare(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().strip() == SPARE
    except OSError:
        return False


def by_value(function: Any) -> bytes:
    """The function with all that its test module defines, as if it came from a notebook."""
    module = sys.modules.get(function.__module__)
    if module is None or not module.__name__.startswith("test_"):
        return wire.by_value(function, MAX_FUNCTION)
    cloudpickle.register_pickle_by_value(module)
    try:
        return wire.by_value(function, MAX_FUNCTION)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def hook(function: Any, timeout: float = 60.0) -> Hook:
    """A callback on its way."""
    return Hook(by_value(function), getattr(function, "__name__", "callback"), timeout)


class Driver:
    """One stable. `rides`, `tails`, `notes`, `begun`, `back`, `gone`, `echoes` hold what it has said so far, by seq."""

    def __init__(
        self,
        function: Any = None,
        *,
        bare: bool = False,
        env: dict[str, str] | None = None,
        folder: str | None = None,
        setup: frames.Setup | None = None,
        **place: Any,
    ):
        self.mark = f"test-{secrets.token_hex(6)}"
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nbqueue.worker.stable", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, MARK: self.mark, **(env or {})},
            start_new_session=True,
            cwd=folder,
        )
        theirs.close()
        self.channel = Channel(ours)
        self.rides: dict[int, CallResult] = {}
        self.tails: dict[int, bytes] = {}
        self.notes: list[frames.Note] = []
        self.begun: list[int] = []
        self.back: list[int] = []
        self.gone: list[int] = []
        self.echoes: dict[int, list[CallbackResult]] = {}
        self.runs: dict[int, frames.Run] = {}
        self.order: list[tuple[str, int]] = []
        self.learnt: list[str] = []
        self.ready: float | None = None
        self.unfit: Failure | None = None
        self.files: list[frames.File] = []
        self.seq = 0
        self.fds: dict[int, int] = {}
        if setup is not None:
            self.channel.send(frames.SETUP, frames.encode(setup))
        if function is not None:
            self.load(function, bare=bare, **place)

    def load(self, function: Any, *, bare: bool = False, hooks: dict[str, Any] | None = None, **place: Any) -> None:
        payload = function if isinstance(function, bytes) else by_value(function)
        defaults = {"key": "k", "label": "f", "python": "3", "interpreter": "", "host": "h", "cwd": str(Path.cwd())}
        packed = {kind: each if isinstance(each, Hook) else hook(each) for kind, each in (hooks or {}).items()}
        record = FunctionRecord(payload=payload, hooks=packed, **{**defaults, **place})
        self.channel.send(frames.LOAD_BARE if bare else frames.LOAD, encode(record))

    def run(self, *items: Any, slot: int = 0, isolate: bool = False, **limits: Any) -> list[int]:
        """Sends one RUN with a job for every item; returns their seqs."""
        jobs = []
        for item in items:
            payload = item if isinstance(item, bytes) else perform.pack((item,), {})
            jobs.append(frames.Job(self.seq, self.seq, 1, payload))
            self.seq += 1
        facts = {"timeout": None, "grace": 0.3, "slice": 0.1, "max_result": 1 << 26, "seed": None, **limits}
        run = frames.Run(slot=slot, batch="b", label="f", isolate=isolate, jobs=jobs, **facts)
        self.channel.send(frames.RUN, frames.encode(run))
        self.runs.update({job.seq: run._replace(jobs=[job]) for job in jobs})
        return [job.seq for job in jobs]

    def after(self, seq: int, kind: str = "", *, handlers: bool = False, slot: int | None = None) -> None:
        """Says that the outcome of a job is settled."""
        run, ride = self.runs[seq], self.rides.get(seq)
        facts: dict[str, Any] = {}
        if ride is not None:
            facts = {"value": ride.value, "failure": encode(ride.failure) if ride.failure else b""}
        after = frames.After(run if slot is None else run._replace(slot=slot), kind, handlers, **facts)
        self.channel.send(frames.AFTER, frames.encode(after))

    def echo(self, seq: int, kind: str = "", *, handlers: bool = False) -> list[CallbackResult]:
        """Says that the outcome of a job is settled; waits for what becomes of its callbacks."""
        self.after(seq, kind, handlers=handlers)
        self.until(lambda: seq in self.echoes)
        return self.echoes[seq]

    def fence(self, at: float) -> None:
        self.channel.send(frames.FENCE, frames.pack_fence(at))

    def thaw(self, *seqs: int) -> None:
        self.channel.send(frames.THAW, frames.pack_seqs(seqs))

    def kill(self, *seqs: int) -> None:
        self.channel.send(frames.KILL, frames.pack_seqs(seqs))

    def drain(self) -> None:
        self.channel.send(frames.DRAIN)

    def pump(self, seconds: float = 0.05) -> None:
        """Takes in what the stable says within `seconds`."""
        write = [self.channel] if self.channel.wants_write else []
        readable, writable, _ = select.select([self.channel], write, [], seconds)
        if writable:
            self.channel.flush()
        if readable:
            for kind, payload, fd in self.channel.receive():
                self._heard(kind, payload, fd)

    def _heard(self, kind: int, payload: bytes, fd: int | None) -> None:
        if kind == frames.DONE:
            done = frames.unpack_done(payload)
            ride = frames.decode_ride(done.ride)
            if fd is not None:
                ride = msgspec.structs.replace(ride, value=frames.read_value(fd))
                self.fds[done.seq] = fd
            assert done.seq not in self.rides, "one run has one outcome"
            self.rides[done.seq], self.tails[done.seq] = ride, done.tail
            self.order.append(("done", done.seq))
        elif kind == frames.NOTE:
            self.notes.append(frames.unpack_note(payload))
        elif kind == frames.ECHO:
            seq, echoes = frames.unpack_echoes(payload)
            assert seq not in self.echoes, "one end of a job has one echo"
            self.echoes[seq] = echoes
        elif kind == frames.READY:
            self.ready = frames.unpack_seconds(payload)
        elif kind == frames.FILES:
            self.files += frames.decode_files(payload)
        elif kind == frames.LEARNT:
            self.learnt += frames.decode_learnt(payload).modules
        elif kind == frames.UNFIT:
            self.unfit = decode(Failure, payload)
        else:
            name = {frames.BEGUN: "begun", frames.BACK: "back", frames.GONE: "gone"}[kind]
            seqs = frames.unpack_seqs(payload)
            getattr(self, name).extend(seqs)
            self.order += [(name, seq) for seq in seqs]

    def until(self, predicate: Any, seconds: float = 30) -> Any:
        """Pumps until `predicate()` is true; returns what it gave."""
        end = time.monotonic() + seconds
        while not (value := predicate()):
            assert time.monotonic() < end, f"in {seconds} s: {self.order[-20:]}, unfit {self.unfit}"
            assert not self.channel.eof, f"the stable died: {self.process.wait(5)}"
            self.pump()
        return value

    def outcomes(self, seqs: list[int], seconds: float = 30) -> list[CallResult]:
        """The rides of these jobs, waited for; what came back, as others took long, is sent again as a worker does."""

        def ended() -> Any:
            for seq in set(seqs).intersection(self.back, self.runs):
                self.back.remove(seq)
                self.channel.send(frames.RUN, frames.encode(self.runs[seq]))
            return self.unfit or all(seq in self.rides for seq in seqs)

        self.until(ended, seconds)
        assert self.unfit is None, self.unfit
        return [self.rides[seq] for seq in seqs]

    def outcome(self, item: Any = None, seconds: float = 30, **limits: Any) -> CallResult:
        """Runs one job and waits for it."""
        return self.outcomes(self.run(item, **limits), seconds)[0]

    def values(self, *items: Any, **limits: Any) -> list[Any]:
        """Runs jobs that must finish, and gives what they returned."""
        rides = self.outcomes(self.run(*items, **limits), 60)
        assert all(ride.state is State.FINISHED for ride in rides), [ride.failure for ride in rides if ride.failure]
        return [wire.loads(ride.value) for ride in rides]

    def alive(self) -> list[int]:
        return alive_with(self.mark)

    def horses(self) -> list[int]:
        """All but the stable and its spare horse."""
        return [pid for pid in self.alive() if pid != self.process.pid and not is_spare(pid)]

    def spare(self) -> int | None:
        """The horse that waits for a call."""
        return next(filter(is_spare, self.alive()), None)

    def close(self) -> None:
        """Ends the stable as a parent's death would, and asserts that nothing is left of it."""
        self.channel.close()
        self.process.wait(10)
        end = time.monotonic() + 5
        while left := self.alive():
            assert time.monotonic() < end, f"left behind: {left}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
