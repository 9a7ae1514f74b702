"""The parent: one thread, one selector. It holds the lease, speaks to Redis, and never runs or unpickles user code."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from selectors import EVENT_READ, DefaultSelector

from nbqueue.errors import LeaseEnded, SetupError
from nbqueue.model import new_id
from nbqueue.settings import cpus, host
from nbqueue.store.broker import Broker
from nbqueue.store.records import Fitness
from nbqueue.wire import Sealer
from nbqueue.worker import limits, marks
from nbqueue.worker.ears import Ears
from nbqueue.worker.intake import Intake
from nbqueue.worker.ledger import Ledger, Task
from nbqueue.worker.plan import Plan
from nbqueue.worker.score import Score
from nbqueue.worker.settling import MOST_PENDING, Settler
from nbqueue.worker.stables import Stables
from nbqueue.worker.stall import Stall
from nbqueue.worker.tenure import Tenure, python_version

UNBEGUN = 1.0  # seconds after which a held job that has not begun is given back
STRANDED = 120.0  # seconds without its private server after which a local worker leaves
TWICE = 1.0  # seconds: a scheduler may send its first SIGTERM twice


class Parent:
    """A worker. `run()` returns its exit code."""

    def __init__(self, broker: Broker, sealer: Sealer, plan: Plan, *, score: Score | None = None) -> None:
        self.broker, self.sealer, self.plan = broker, sealer, plan
        self.score = score or Score()
        self.selector = DefaultSelector()
        slots, worker = plan.slots or cpus(), new_id(plan.name or host())
        self.ledger = Ledger(slots)
        self.settler = Settler(broker, sealer, self.score, host(), worker)
        self.stables = Stables(
            ledger=self.ledger,
            intake=Intake(broker, sealer, self.ledger, isolate=plan.isolate),
            settler=self.settler,
            score=self.score,
            selector=self.selector,
            mark=marks.own_mark(worker),
            host=host(),
            threads=max(1, cpus() // slots),
        )
        self.ears = Ears(broker, self.selector)
        self.tenure = Tenure(
            broker, sealer.keyring, plan, slots, worker, self.ledger, self.settler, self.stables, self.ears, self.score
        )
        self._claims = 0
        self._thirsty = True  # whether a claim may find something
        self._stop_at: float | None = None  # set by a first SIGTERM: when running jobs are killed
        self._signalled_at = 0.0
        self._offline: float | None = None  # since when the server has not answered
        self._retry_at = 0.0
        self._idle_since = self._began = time.monotonic()
        self._next_leave = self._next_stale = 0.0
        self._served = 0
        self._bereaved = False  # a child has ended
        self._over = False

    # ------------------------------------------------------------ the life of a worker

    def run(self) -> int:
        """Works until told to stop, or until a burst is over; returns the exit code."""
        limits.become_subreaper()
        if killed := marks.sweep():
            self.score.line("--", f"killed {killed} processes that a dead worker left behind")
        with self._signals():
            try:
                self.tenure.join()
                what = f"{self.tenure.slots} slots, queues {' '.join(self.tenure.queues)}"
                self.score.line("--", f"worker {self.tenure.id} is up: {what}, {self.plan.server}")
                while not self._over:
                    self._turn()
            except Exception as why:
                # What it holds is given back now, not when its lease has run out.
                self.score.line("!!", f"ends by an unexpected {type(why).__name__}; its jobs are given back")
                self.stables.close()
                with contextlib.suppress(SetupError):
                    self.broker.leave(self.tenure.id)
                raise
            finally:
                self.stables.close()
                self.ears.close()
        return 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        # A signal wakes the selector through this pair, so that the loop sees it at once, wherever it is.
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.selector.register(near, EVENT_READ, near)
        known = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        for number in known:
            signal.signal(number, self._signalled)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in known.items():
                late = self.plan.exits and number != signal.SIGCHLD
                signal.signal(number, signal.SIG_IGN if late else handler)
            self.selector.unregister(near)
            near.close()
            far.close()

    def _signalled(self, number: int, _frame: object) -> None:
        if number == signal.SIGCHLD:
            self._bereaved = True
            return
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now + self.plan.grace
        elif now - self._signalled_at >= TWICE:
            self._stop_at = now
        else:
            return
        self._signalled_at = now

    def _turn(self) -> None:
        """Waits for whatever comes first, and does what is due."""
        for key, events in self.selector.select(self._patience()):
            if isinstance(key.data, Stall):
                self.stables.hear(key.data, events)
            elif isinstance(key.data, socket.socket):
                key.data.recv(4096)
            else:
                self._heard(self.ears.hear(key.data))
        if self._bereaved:
            self._bereaved = False
            self.stables.reap_strays()
        if time.monotonic() >= self._retry_at:
            try:
                self._serve()
                self._back_online()
            except SetupError as why:
                self._gone_offline(why)
        if self._stop_at is None:
            try:
                self.stables.dispatch()
            except SetupError as why:
                self._gone_offline(why)

    def _patience(self) -> float:
        """Seconds until something is due."""
        now = time.monotonic()
        if self._offline is not None:
            return max(0.0, self._retry_at - now)
        times = [self.tenure.next_beat - now]
        if (due := self.settler.due) is not None:
            times.append(due)
        if self._stop_at is not None:
            times.append(self._stop_at - now)
        if self.ledger.waiting or self.stables.loading():
            times.append(UNBEGUN / 2)
        if self._thirsty and self._wish()[1]:
            return 0.0
        if self._idle():
            if self.plan.burst:
                times.append(self._next_leave - now)
            if self.plan.max_idle is not None:
                times.append(self._idle_since + self.plan.max_idle - now)
        return max(0.0, min(times))

    def _heard(self, message: str | None) -> None:
        self._thirsty = True
        if message == "look":
            self.tenure.next_beat = 0.0

    def _serve(self) -> None:
        """Everything that speaks to Redis; raises SetupError when it is away."""
        try:
            self.ears.attend(self.tenure.id)
            self.settler.brisk = self._stop_at is None and self.stables.brisk
            if time.monotonic() >= self.tenure.next_beat:
                self.tenure.beat()  # before outcomes, which may be large and slow to send
                self._thirsty = True
            self.settler.flush()
            if self._stop_at is not None:
                self._drain()
                return
            self._give_back()
            self._claim()
        except LeaseEnded as why:
            self.tenure.rejoin(why)
            self._thirsty = True
        if self._idle() and self.tenure.estranged and self._stop_at is None:
            self.tenure.reconcile()
        if self._idle():
            self._rest()
        else:
            self._idle_since = time.monotonic()

    def _gone_offline(self, why: SetupError) -> None:
        now = time.monotonic()
        if self._offline is None:
            self._offline = now
            self.score.line("!!", f"{why} Running jobs go on; trying again.")
        if self._stop_at is not None and now >= self._stop_at:
            self.score.line("!!", "stops without the server: its lease runs out, and others take its jobs")
            self._over = True
        if self.plan.local and now - self._offline > STRANDED:
            self.score.line("--", "leaves: its private server is gone; the next notebook starts both")
            self._over = True
        self._retry_at = now + min(2.0, 0.1 + (now - self._offline) / 4)

    def _back_online(self) -> None:
        if self._offline is not None:
            self.score.line("--", f"the server is back after {time.monotonic() - self._offline:.1f} s")
            self._offline = None
            self._thirsty = True

    # ------------------------------------------------------------ jobs in and out

    def _wish(self) -> tuple[int, int]:
        """`(free, want)` for the next claim."""
        if self.tenure.estranged or self._stop_at is not None or self.settler.pending > MOST_PENDING:
            return 0, 0
        free, want = self.ledger.wish(self.stables.recent)
        if self.plan.max_jobs is not None:
            left = max(0, self.plan.max_jobs - self._served)
            free, want = min(free, left), min(want, left)
        return free, want

    def _claim(self) -> None:
        free, want = self._wish()
        if not want or not self._thirsty:
            return
        unfit = self.stables.unfit_keys()
        fit = Fitness(keys=self.sealer.keyring.ids, python=python_version(), host=host(), unfit=unfit)
        worker = self.tenure.id
        # The token changes only once a claim is answered: asked again with the same one, the store gives the same jobs.
        token = f"{worker}:{self._claims + 1}"
        claimed = self.broker.claim(worker, token, self.tenure.queues, free=free, want=want, fit=fit)
        self._claims += 1
        self.tenure.clock(claimed.now_us)
        for task, ride in self.stables.intake.take(claimed):
            self.settler.add(task, ride, b"")
        skipped = ", ".join(f"{count} batches wait for {reason}" for reason, count in sorted(claimed.skipped.items()))
        self.score.once("skipped", "!!", skipped)
        self._thirsty = bool(claimed.grants)
        self._served += sum(len(grant.jobs) for grant in claimed.grants)

    def _give_back(self) -> None:
        """Releases what cannot begin soon, and what cannot be loaded here; where no worker can load it, it fails."""
        now = time.monotonic()
        if now >= self._next_stale:
            self._next_stale = now + UNBEGUN / 4
            if stale := self.stables.unbegun(UNBEGUN):
                self._release(stale)
        for key, tasks in self.stables.refused().items():
            nobody_can = self.broker.release(self.tenure.id, [task.lease for task in tasks], unfit=True)
            self.stables.refusals = [task for task in self.stables.refusals if task.spec.key != key]
            if nobody_can:
                self.stables.fail_unloadable(key, tasks)
            else:
                self._forget(tasks)
                self._thirsty = True
        self.stables.end_slow_loads()

    def _release(self, tasks: list[Task]) -> None:
        # Forgotten first: should the answer be lost, they must not be run here as well.
        self._forget(tasks)
        self.broker.release(self.tenure.id, [task.lease for task in tasks])

    def _forget(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.ledger.drop(task)
        self._served -= len(tasks)

    # ------------------------------------------------------------ rest and leave

    def _idle(self) -> bool:
        return not self.ledger.tasks and not self.settler.pending

    def _rest(self) -> None:
        """Nothing to do: listen, or leave where that was asked for."""
        if self.plan.max_jobs is not None and self._served >= self.plan.max_jobs:
            self._leave("it has done its jobs")
        elif self._thirsty:
            return
        elif self.plan.burst and self._may_leave():
            self._leave("nothing is left to do")
        elif self.plan.max_idle is not None and self._idled() >= self.plan.max_idle and not self._wanted():
            self._leave(f"idle for {self._idled():.0f} s")
        else:
            self.ears.listen(self.tenure.queues, self.plan.beat)

    def _idled(self) -> float:
        return time.monotonic() - self._idle_since

    def _may_leave(self) -> bool:
        """Whether a burst is over: the store refuses while anything may still come back."""
        now = time.monotonic()
        if now < self._next_leave:
            return False
        self._next_leave = now + 0.25
        if not self._served and now - self._began < self.plan.patience:
            return False
        if self.broker.leave(self.tenure.id, burst=True):
            return True
        self._thirsty = True
        return False

    def _wanted(self) -> bool:
        """Whether a private server's worker must stay, because a notebook is still connected."""
        if not self.plan.local or self.broker.client_count() <= self.ears.connections:
            return False
        self._idle_since = time.monotonic()
        return True

    def _leave(self, why: str) -> None:
        self.broker.leave(self.tenure.id)
        if self._served:
            self.score.line("--", f"leaves: {why}; {self._served} jobs served")
        else:
            where = f"on {self.plan.server}, queues {' '.join(self.tenure.queues)}"
            self.score.line("--", f"leaves: {why}; no job was found {where}")
        self._over = True
        if self.plan.local and not self._wanted():
            self.broker.shutdown()

    def _drain(self) -> None:
        """After SIGTERM: nothing new begins; what runs may finish within the grace; the rest is given back."""
        now = time.monotonic()
        assert self._stop_at is not None
        if not self.settler.draining:
            self.settler.draining = True
            left = max(0.0, self._stop_at - now)
            self.score.line("--", f"asked to stop: {len(self.ledger.begun())} jobs may run on for {left:.0f} s")
            self.stables.drain()
        self._give_back_unsettled()
        if self.ledger.tasks and now < self._stop_at:
            return
        self.stables.close()
        begun = [task.lease for task in self.ledger.tasks.values()]
        if begun:
            self.broker.release(self.tenure.id, begun, begun=frozenset(begun))
        self.settler.flush()
        self.broker.leave(self.tenure.id)
        self.score.line("--", f"stopped; {len(begun)} running jobs were given back")
        self._over = True

    def _give_back_unsettled(self) -> None:
        """Releases failures that may be the scheduler's doing, and all that has not begun."""
        failed = self.settler.withdraw()
        waiting = [*self.ledger.all_waiting(), *self.stables.refusals]
        self.stables.refusals = []
        if failed or waiting:
            leases = [*failed, *(task.lease for task in waiting)]
            self.broker.release(self.tenure.id, leases, begun=frozenset(failed))
            for task in waiting:
                self.ledger.drop(task)
