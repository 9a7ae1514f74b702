"""Functions that cannot be loaded here, and the jobs that are given back because of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from nbqueue.errors import CodeDiffers
from nbqueue.model import Failure
from nbqueue.store import pending
from nbqueue.store.broker import Broker
from nbqueue.wire import shown_spec
from nbqueue.worker.ledger import Task
from nbqueue.worker.score import Score

UNFIT = 15.0  # seconds until a function that could not be loaded is tried again: a module may be there by then
PATIENCE = 60.0  # seconds that all must have lacked a job's code before it fails: a deployment takes its time


@dataclass(slots=True)
class Refusals:
    """Remembers why, and for how long."""

    score: Score
    tasks: list[Task] = field(default_factory=list)  # jobs whose function could not be loaded here
    _unfit: dict[str, tuple[float, Failure]] = field(default_factory=dict)  # function -> since when, and why

    def call_unfit(self, key: str, label: str, failure: Failure) -> None:
        """Notes that a function could not be loaded."""
        now, asked = time.monotonic(), {task.spec.key for task in self.tasks}
        self._unfit = {old: why for old, why in self._unfit.items() if now - why[0] < UNFIT or old in asked}
        self._unfit[key] = now, failure
        # What loading says is about modules and files, not about arguments: it may stand in a log, cut to a line.
        self.score.once(key, "!!", f"{label} cannot be loaded here: {' '.join(failure.message.split())[:300]}")

    @property
    def unfit(self) -> tuple[str, ...]:
        """Functions that could not be loaded here a moment ago."""
        now = time.monotonic()
        return tuple(key for key, (since, _) in self._unfit.items() if now - since < UNFIT)

    def refuses(self, task: Task) -> bool:
        """Whether its function could not be loaded since it came: what came later may come with a fixed module."""
        found = self._unfit.get(task.spec.key)
        return found is not None and found[0] >= task.since

    def patience(self, key: str) -> float:
        """For how many seconds all workers must have refused a function before its jobs fail."""
        return PATIENCE if self._unfit[key][1].type.endswith(f".{CodeDiffers.__name__}") else 0.0

    def why(self, key: str) -> Failure:
        """Why a function could not be loaded."""
        return self._unfit[key][1]

    def by_function(self) -> dict[str, list[Task]]:
        """The jobs to give back, by function."""
        found: dict[str, list[Task]] = {}
        for task in self.tasks:
            found.setdefault(task.spec.key, []).append(task)
        return found

    def forget(self, key: str) -> None:
        """The jobs of this function have been given back."""
        self.tasks = [task for task in self.tasks if task.spec.key != key]

    def take(self) -> Iterable[Task]:
        """All jobs to give back; they are no longer here."""
        taken, self.tasks = self.tasks, []
        return taken


def lacks(broker: Broker, worker: str, skipped: dict[str, int]) -> list[str]:
    """What a worker could not run when it last claimed: how many batches, what they wait for, and what to do."""
    ids = broker.left_behind(worker)[:100] if skipped else []
    owners = {f"{pending.KEY} {view.signer}": shown_spec(view.spec).owner for view in broker.views(ids) if view}
    found = []
    for each, count in sorted(skipped.items()):
        wait = "batch waits" if count == 1 else "batches wait"
        found.append(f"{count:,} {wait} for {pending.lacking(each, owners.get(each, ''))}")
    return found
