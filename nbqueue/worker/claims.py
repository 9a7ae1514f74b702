"""Jobs in, and back out again when they cannot begin here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from nbqueue.settings import host, python_version
from nbqueue.store.records import Claimed, Fitness, Lease
from nbqueue.worker.ledger import Task
from nbqueue.worker.refusals import lacks
from nbqueue.worker.score import Score
from nbqueue.worker.settling import Settler
from nbqueue.worker.stables import Stables
from nbqueue.worker.tenure import Tenure

UNBEGUN = 1.0  # seconds after which a held job that has not begun is given back


@dataclass(slots=True)
class Claims:
    """Claims for one worker, and gives back."""

    tenure: Tenure
    settler: Settler
    stables: Stables
    score: Score
    max_jobs: int | None
    served: int = 0  # jobs taken and not given back
    thirsty: bool = True  # whether a claim may find something
    suspended: bool = False  # someone has suspended all workers
    rung: bool = False  # a bell was heard, which nobody has answered yet
    _count: int = 0
    _more: str = ""  # where the last claim stopped, short of the end of the queues
    _passed_over: Counter[str] = field(default_factory=Counter)  # by the claims since the beginning of the queues
    _withheld: int = 0  # how many jobs it held when it was given none, though there were some
    lacks: list[str] = field(default_factory=list)  # what waits that it cannot run, and why
    _skipped: dict[str, int] = field(default_factory=dict)
    _unheard: bool = False  # whether the last claim has had no answer
    _next_stale: float = 0.0

    def wish(self) -> tuple[int, int]:
        """`(free, want)` for the next claim."""
        if self.settler.full:
            return 0, 0
        free, want = self.stables.ledger.wish(self.stables.recent)
        if self.max_jobs is not None:
            left = max(0, self.max_jobs - self.served)
            free, want = min(free, left), min(want, left)
        return free, want

    def claim(self) -> None:
        """Takes jobs, if a claim may find some and there is room; else listens, or passes on what was heard."""
        if self._holds() < self._withheld:
            self.thirsty = True  # suspects of a loss are given only to who holds few
        free, want = self.wish()
        if self._unheard:
            # A claim that was not answered may have given jobs: asked again with its token, the store tells which.
            self._answered(self._ask(free, want))
        elif want and self.thirsty:
            self._answered(self._ask(free, want))
        elif self.rung and not want:
            # Too busy by now: the claim rings for others. It gives only what an earlier one gave that was not heard.
            self._take(self._ask(0, 0))
        self.rung = False
        if not self.thirsty and self.wish()[1]:
            self.tenure.ears.listen(self.tenure.queues, self.tenure.plan.beat)

    def _ask(self, free: int, want: int) -> Claimed:
        keys = self.settler.sealer.keyring.ids
        fit = Fitness(keys=keys, python=python_version(), host=host(), unfit=self.stables.refusals.unfit)
        worker = self.tenure.id
        # The token changes only once a claim is answered: asked again with the same one, the store gives the same jobs.
        token = f"{worker}:{self._count + 1}"
        self._unheard = True
        asked = time.monotonic()
        claimed = self.tenure.broker.claim(
            worker, token, self.tenure.queues, free=free, want=want, fit=fit, more=self._more if want else ""
        )
        self._count, self._unheard = self._count + 1, False
        self.settler.clock(claimed.now_us, asked)
        return claimed

    def _answered(self, claimed: Claimed) -> None:
        self.tenure.due_in(claimed.due)
        self._take(claimed)
        self._left_behind(claimed)
        if claimed.suspended != self.suspended:
            self.suspended = claimed.suspended
            text = "suspended: it takes no jobs until `nbqueue resume`" if self.suspended else "resumed"
            self.score.line("--", text)
        # One that stopped on its way goes on at once, in the next turn: what this worker can run may stand behind.
        self._more = claimed.more
        self.thirsty = bool(claimed.more) or (bool(claimed.grants) and claimed.left)
        self._withheld = self._holds() if claimed.left and not claimed.grants else 0

    def _left_behind(self, claimed: Claimed) -> None:
        """Says once what this worker cannot run, why, and what to do about it."""
        if not self._more:
            self._passed_over.clear()
        self._passed_over.update(claimed.skipped)
        if claimed.more or self._passed_over == self._skipped:
            return
        self._skipped = dict(self._passed_over)
        self.lacks = lacks(self.tenure.broker, self.tenure.id, self._skipped)
        for number, text in enumerate(self.lacks):
            self.score.once(f"skipped {number}", "!!", text)

    def _holds(self) -> int:
        """How many jobs it has that are not settled."""
        return len(self.stables.ledger.tasks) + self.settler.pending

    def _take(self, claimed: Claimed) -> None:
        for task, ride in self.stables.intake.take(claimed):
            self.settler.add(task, ride, b"")
        self.served += sum(len(grant.jobs) for grant in claimed.grants)

    def give_back(self) -> None:
        """Releases what cannot begin soon, and what cannot be loaded here; where no worker can load it, it fails."""
        now = time.monotonic()
        if now >= self._next_stale:
            self._next_stale = now + UNBEGUN / 4
            if stale := self.stables.unbegun(UNBEGUN):
                # Forgotten first: should the answer be lost, they must not be run here as well.
                self._forget(stale)
                self._part_with(task.lease for task in stale)
        if self.tenure.estranged and not self._unheard:
            self._disown()
        if parting := self.stables.ledger.parting:
            self.tenure.broker.release(self.tenure.id, parting)
            parting.clear()
        for key, tasks in self.stables.refusals.by_function().items():
            leases = [task.lease for task in tasks]
            patience = self.stables.refusals.patience(key)
            nobody_can = self.tenure.broker.release(self.tenure.id, leases, unfit=True, patience=patience)
            self.stables.refusals.forget(key)
            if nobody_can:
                self.stables.fail_unloadable(key, tasks)
            else:
                self._forget(tasks)
                self.thirsty = True
        self.stables.end_slow_loads()

    def _part_with(self, leases: Iterable[Lease]) -> None:
        self.stables.ledger.parting += leases

    def _disown(self) -> None:
        """What the store holds in our name and we do not know: a claim whose answer never came, or an older state."""
        self.tenure.estranged = False
        ledger = self.stables.ledger
        known = {task.lease for task in ledger.tasks.values()} | self.settler.leases | set(ledger.parting)
        unknown = [lease for lease in self.tenure.broker.leases_of(self.tenure.id) if lease not in known]
        if unknown:
            self.score.line("--", f"gives back {len(unknown)} jobs that a lost answer left in its name")
            self._part_with(unknown)
            # A number before that of the last claim would be taken for one that comes late, and be given nothing.
            numbers = [lease.token.rpartition(":")[2] for lease in unknown]
            self._count = max(self._count, *(int(number) for number in numbers if number.isdecimal()), 0)

    def _forget(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.stables.ledger.drop(task)
        self.settler.notes.forget(task.lease for task in tasks)
        self.served -= len(tasks)
