"""How a worker was asked to work."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder

from nbqueue.model import BEAT, DEFAULT_QUEUE, LEASE

ALL_QUEUES = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of `nbqueue worker`; times in seconds."""

    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    slots: int = 0  # 0: the CPUs that this process may use
    name: str = ""
    id: str = ""  # empty: made of its name; after a lease that has ended it takes another one
    burst: bool = False
    isolate: bool = False
    max_jobs: int | None = None
    max_idle: float | None = None
    patience: float = 0.0  # how long a burst worker waits for a first job
    grace: float = 5.0  # what running jobs get at a SIGTERM
    lease: float = LEASE
    beat: float = BEAT
    paths: tuple[str, ...] = ()  # folders that go first into sys.path of every stable
    preload: tuple[str, ...] = ()  # modules that every stable imports before its function
    handlers: tuple[str, ...] = ()  # dotted names of functions that are told of every failure
    spill: str = ""  # folder or URL for large results of batches that name none
    local: bool = False  # the worker of a private server: stays while a notebook is connected, and ends the server last
    exits: bool = False  # the process ends with the worker: signals that come late are ignored
    server: str = ""  # its name in messages

    def missing(self) -> list[str]:
        """The modules of `preload` that are not to be found from here, nor in `paths`. Nothing is imported."""
        folders = [*self.paths, os.getcwd()]  # noqa: PTH109 - as sys.path has them
        return [name for name in self.preload if not _findable(name.partition(".")[0], folders)]


def _findable(module: str, folders: list[str]) -> bool:
    if module in sys.modules:
        return True
    return bool(module) and bool(importlib.util.find_spec(module) or PathFinder.find_spec(module, folders))
