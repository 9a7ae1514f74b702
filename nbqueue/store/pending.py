"""Why jobs that wait do not begin: what they need, held against what the workers of their queue can do.

One place answers for all who tell it: `nbqueue info`, the panel, whoever waits, and a worker that leaves jobs behind.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nbqueue.checks import counted
from nbqueue.model import WorkerInfo, worker_info
from nbqueue.store.reads import Reads
from nbqueue.store.records import BatchView
from nbqueue.store.roster import Roster

BUSY, SUSPENDED, QUEUE, KEY, PYTHON, CODE = "busy", "suspended", "queue", "key", "python", "code"


class Pending(NamedTuple):
    """Why jobs wait, and what to do about it. `reason` is one of the words above."""

    reason: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}. {self.remedy}".rstrip()


def lacking(misfit: str, owner: str = "", label: str = "their function") -> Pending:
    """What a worker lacks, by the word that claim has for it: `key 9f2a`, `python 3.11`, `unfit`."""
    word, _, what = misfit.partition(" ")
    if word == KEY:
        who = f" ({owner})" if owner else ""
        remedy = "Give workers the secret of who submitted: the same NBQUEUE_SECRET, or the file `secret` of that "
        remedy += "nbqueue home (one line a key; a shared home does it), and start them again."
        return Pending(KEY, f"key {what}{who}", remedy)
    if word == PYTHON:
        remedy = f"Start a worker with Python {what}, or submit from the Python that workers have."
        return Pending(PYTHON, f"python {what}", remedy)
    if word == "unfit":
        remedy = (
            "Bring its modules to the workers as they were when it was submitted (they look every 15 s), or submit it "
            "with pin=False, which takes what is there; the logs of the workers name the module."
        )
        return Pending(CODE, f"the code of {label}, which could not be loaded", remedy)
    return Pending(word, f"{misfit}", "")


def elsewhere(broker: Roster, queues: Sequence[str]) -> str:
    """What waits in queues that a worker of `queues` does not serve, with the command that does; empty: nothing."""
    waiting = {name: tally.queued for name, tally in broker.queues().items() if name not in queues and tally.queued}
    if not waiting:
        return ""
    most = sorted(waiting, key=lambda name: -waiting[name])[:5]
    told = ", ".join(f"{name} ({waiting[name]:,})" for name in most) + (", ..." if len(waiting) > len(most) else "")
    return f"jobs of queues that it does not serve: {told}. nbqueue worker {shlex.join(most)}"


class Workers:
    """The workers that are up, as they are when this is made: one look answers for many batches."""

    def __init__(self, broker: Reads) -> None:
        """Raises NoServer and its kin."""
        self._broker = broker
        self._up: list[tuple[WorkerInfo, int]] = []
        for raw, left, held in broker.workers():
            if left > 0 and (info := worker_info(raw)) is not None:
                self._up.append((info, held))
        self.suspended = broker.suspended()

    def of(self, queue: str) -> list[WorkerInfo]:
        """Those that serve a queue."""
        return [info for info, _ in self._up if queue in info.queues]

    def pending(
        self, view: BatchView, *, label: str = "their function", owner: str = "", start: str = ""
    ) -> Pending | None:
        """Why queued jobs of a batch wait; None where a worker that can run them has a free slot.

        `start` is the command that starts a worker for them, `owner` who submitted them.
        """
        if self.suspended is not None:
            until = "" if self.suspended == math.inf else f" for {self.suspended:.0f} s more"
            return Pending(SUSPENDED, f"all workers are suspended{until}", "`nbqueue resume` lets them go on.")
        serving = [(info, held) for info, held in self._up if view.queue in info.queues]
        if not serving:
            others = sorted({queue for info, _ in self._up for queue in info.queues})
            but = f" (those that are up serve {', '.join(others[:5])})" if others else ""
            remedy = f"Start one: {start or f'nbqueue worker {view.queue}'}"
            return Pending(QUEUE, f"no live worker serves the queue {view.queue!r}{but}", remedy)
        misfits = self._misfits(view, [info for info, _ in serving])
        fit = [(info, held) for info, held in serving if info.id not in misfits]
        if not fit:
            lacks = [lacking(word, owner, label) for word in sorted(set(misfits.values()))]
            what = " or ".join(each.text for each in lacks)
            text = f"no worker of the queue {view.queue!r} has {what}"
            return Pending(lacks[0].reason, text, " ".join(each.remedy for each in lacks))
        if all(held >= info.slots for info, held in fit):
            slots = sum(info.slots for info, _ in fit)
            all_of = f"all {slots:,} slots of its {counted(len(fit), 'worker')} are"
            return Pending(BUSY, f"{'the only slot of its worker is' if slots == 1 else all_of} busy", "")
        return None

    def _misfits(self, view: BatchView, infos: list[WorkerInfo]) -> dict[str, str]:
        """What each of these workers lacks for a batch, in the words of claim; as claim.lua judges."""
        (python, host), refused = self._broker.place(view.id), self._broker.refusing(view.key)
        found = {}
        for info in infos:
            if view.signer not in info.keys:
                found[info.id] = f"{KEY} {view.signer}"
            elif python != info.python and host != info.host:
                found[info.id] = f"{PYTHON} {python}"
            elif info.id in refused:
                found[info.id] = "unfit"
        return found


def grouped(
    broker: Reads, views: list[BatchView], facts: Callable[[BatchView], tuple[str, str]], most: int = 100
) -> list[tuple[Pending, list[BatchView]]]:
    """Why the queued jobs of batches wait, with the batches to which each reason applies; `facts`: (label, owner).

    Of very many batches, the first `most` that differ in what they need.
    """
    workers = Workers(broker)
    kinds: dict[tuple[str, str, str], list[BatchView]] = {}
    for view in views:
        if view.tally.queued and not view.done:
            kinds.setdefault((view.queue, view.signer, view.key), []).append(view)
    found: dict[Pending, list[BatchView]] = {}
    for same in list(kinds.values())[:most]:
        label, owner = facts(same[0])
        if (why := workers.pending(same[0], label=label, owner=owner)) is not None:
            found.setdefault(why, []).extend(same)
    return list(found.items())
