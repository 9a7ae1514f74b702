"""The parent: one thread, one selector. It holds the lease, speaks to Redis, and never runs or unpickles user code."""

from __future__ import annotations

import contextlib
import socket
import time
from selectors import DefaultSelector

from nbqueue.errors import LeaseEnded, NoServer, ServerRefused, SetupError
from nbqueue.model import new_id
from nbqueue.settings import cpus, host
from nbqueue.store.broker import Broker
from nbqueue.wire import Sealer
from nbqueue.worker import frames, mail, marks, tree
from nbqueue.worker.aftermath import Aftermath
from nbqueue.worker.claims import UNBEGUN, Claims
from nbqueue.worker.ears import Ears
from nbqueue.worker.intake import Intake
from nbqueue.worker.leaving import Leaving
from nbqueue.worker.ledger import Ledger
from nbqueue.worker.notes import Notepad
from nbqueue.worker.plan import Plan
from nbqueue.worker.refusals import Refusals
from nbqueue.worker.score import Score
from nbqueue.worker.settling import Settler
from nbqueue.worker.signals import Signals
from nbqueue.worker.stables import Stables
from nbqueue.worker.stall import Stall
from nbqueue.worker.strays import Strays
from nbqueue.worker.tenure import Tenure

STRANDED = 120.0  # seconds without its private server after which a local worker leaves


class Parent:
    """A worker. `run()` returns its exit code; `served` is the number of jobs that it took."""

    def __init__(self, broker: Broker, sealer: Sealer, plan: Plan, *, score: Score | None = None) -> None:
        self.broker, self.sealer, self.plan = broker, sealer, plan
        self.score = score = score or Score()
        self.selector = DefaultSelector()
        self.signals = Signals(plan.grace, exits=plan.exits)
        self.mailbox = mail.Mailbox(sealer)
        slots, worker = plan.slots or cpus(), plan.id or new_id(plan.name or host())
        self.ledger = Ledger(slots)
        self.notes = Notepad(broker, sealer, score)
        self.settler = Settler(broker, sealer, score, self.notes, host(), worker)
        self.stables = self._stables(worker, slots)
        self.aftermath = Aftermath(
            broker, sealer, score, self.ledger, self.settler, self.stables, handlers=bool(plan.handlers)
        )
        self.stables.aftermath, self.settler.told = self.aftermath, self.aftermath.settled
        self.ears = Ears(broker, self.selector, plan.beat)
        self.tenure = Tenure(
            broker,
            sealer.keyring,
            plan,
            slots,
            worker,
            self.ledger,
            self.settler,
            self.stables,
            self.ears,
            self.aftermath,
            score,
        )
        self.claims = Claims(self.tenure, self.settler, self.stables, score, plan.max_jobs)
        self.leaving = Leaving(plan, self.tenure, self.claims, self.settler, self.stables, self.aftermath, score)
        self._offline: float | None = None  # since when the server has not answered
        self._troubles: set[str] = set()  # the kinds of trouble that it has been in since then
        self._retry_at = 0.0

    def _stables(self, worker: str, slots: int) -> Stables:
        plan, mark = self.plan, marks.own_mark(worker)
        return Stables(
            ledger=self.ledger,
            intake=Intake(self.broker, self.sealer, self.ledger, isolate=plan.isolate),
            settler=self.settler,
            score=self.score,
            selector=self.selector,
            refusals=Refusals(self.score),
            strays=Strays(mark, alone=plan.exits),
            mark=mark,
            host=host(),
            threads=max(1, cpus() // slots),
            setup=frames.Setup(plan.paths, plan.preload, plan.handlers, plan.spill, self.broker.namespace),
        )

    @property
    def served(self) -> int:
        """How many jobs it took and did not give back."""
        return self.claims.served

    # ------------------------------------------------------------ the life of a worker

    def run(self) -> int:
        """Works until told to stop, or until a burst is over; returns the exit code."""
        tree.become_subreaper()
        if killed := marks.sweep():
            self.score.line("--", f"killed {killed} processes that a dead worker left behind")
        for name in self.plan.missing():
            where = "a function that does not bring it along waits. Is it misspelt? -P names a folder to import from"
            self.score.line("!!", f"preload: there is no module {name!r} here; {where}")
        with self.signals.watched(self.selector):
            try:
                self._join()
                while not self.leaving.over:
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
                self.broker.connection.close()
                tree.become_subreaper(wanted=self.plan.exits)
        self.selector.close()
        return 0

    def _join(self) -> None:
        """Joins; where the server has gone since it was reached, as soon as it is back, unless told to stop."""
        while True:
            try:
                try:
                    self.tenure.join()
                except LeaseEnded as why:  # it had heard us, and we did not hear it
                    self.tenure.rejoin(why)
            except (NoServer, ServerRefused) as why:
                self._gone_offline(why)
                self.selector.select(max(0.0, self._retry_at - time.monotonic()))
                self.leaving.over = self.leaving.over or self.signals.stop_at is not None
                if self.leaving.over:
                    return
            else:
                self._back_online()
                what = f"slots {self.tenure.slots}, queues {' '.join(self.tenure.queues)}"
                self.score.line("--", f"worker {self.tenure.id} is up: {what}, {self.plan.server}")
                return

    def _turn(self) -> None:
        """Waits for whatever comes first, and does what is due."""
        for key, events in self.selector.select(self._patience()):
            if isinstance(key.data, Stall):
                self.stables.hear(key.data, events)
            elif isinstance(key.data, socket.socket):
                key.data.recv(4096)
            else:
                self._heard(self.ears.hear(key.data))
        if self.signals.bereaved:
            self.signals.bereaved = False
            self.stables.reap_strays()
            self.stables.end_deaf()
        elif self.stables.deaf:
            self.stables.end_deaf()
        if time.monotonic() >= self._retry_at:
            try:
                self._serve()
                self._back_online()
            except SetupError as why:
                self._gone_offline(why)
        if self.signals.stop_at is None and not self.settler.full:
            try:
                self.stables.dispatch()
            except SetupError as why:
                self._gone_offline(why)
            self.stables.stand_ready()

    def _patience(self) -> float:
        """Seconds until something is due."""
        now = time.monotonic()
        if self._offline is not None:
            return max(0.0, self._retry_at - now)
        times = [self.tenure.next_beat - now, self.tenure.next_due - now]
        times += [due for due in (self.settler.due, self.notes.due) if due is not None]
        if self.signals.stop_at is not None:
            times.append(self.signals.stop_at - now)
        elif self.claims.thirsty and self.claims.wish()[1]:
            return 0.0
        if self.ledger.waiting or self.stables.loading() or self.stables.deaf:
            times.append(UNBEGUN / 2)
        if self.leaving.idle():
            times += self.leaving.times(now)
        return max(0.0, min(times))

    def _heard(self, letter: bytes | None) -> None:
        """Takes what an ear has heard: a bell, a hint, or a signed message."""
        if letter is None:
            return
        self.claims.thirsty = True
        if letter == mail.LOOK:
            self.tenure.next_beat = 0.0
        elif letter:
            self._told(letter)
        else:
            self.claims.rung = True

    def _told(self, letter: bytes) -> None:
        message = self.mailbox.heard(self.tenure.id, letter, self.settler.now_us, self.score)
        if message is None:
            return
        if message.verb == mail.SHUTDOWN:
            self.score.line("--", "told to shut down")
            self.signals.finish()
        elif message.verb == mail.KILL:
            self.score.line("--", f"told to kill what runs: {', '.join(self.aftermath.kill_running()) or 'nothing'}")
        elif message.verb != mail.STOP:
            self.score.line("!!", f"a message was refused: there is no {message.verb!r}")
        elif self.aftermath.stop(message.job):
            self.score.line("--", f"told to stop {message.job}")
        else:
            self.score.line("--", f"told to stop {message.job}, which is not here")

    def _serve(self) -> None:
        """Everything that speaks to Redis; raises SetupError when it is away."""
        stop_at = self.signals.stop_at
        try:
            self.ears.attend(self.tenure.id)
            self.settler.brisk = stop_at is None and self.stables.brisk
            self._keep_up()
            self.settler.flush()
            self.aftermath.flush()
            if stop_at is not None:
                self.leaving.drain(stop_at)
                return
            self.claims.give_back()
            self.claims.claim()
        except LeaseEnded as why:
            self.tenure.rejoin(why)
            self.claims.thirsty = True
        if self.leaving.idle():
            self.leaving.rest()
        else:
            self.leaving.idle_since = time.monotonic()

    def _keep_up(self) -> None:
        """What has its time: the beat, what is scheduled, and what running jobs say of themselves."""
        now = time.monotonic()
        if now >= self.tenure.next_beat:
            self.tenure.beat()  # before outcomes, which may be large and slow to send
            self.claims.thirsty = True
        elif now >= self.tenure.next_due:
            self.tenure.promote()
            self.claims.thirsty = True
        self.notes.flush()

    def _gone_offline(self, why: SetupError) -> None:
        now = time.monotonic()
        if self._offline is None:
            self._offline = now
        if why.kind not in self._troubles:
            self._troubles.add(why.kind)
            self.score.line("!!", f"{why} Running jobs go on; trying again.")
        if self.signals.stop_at is not None and now >= self.signals.stop_at:
            self.score.line("!!", "stops without the server: its lease runs out, and others take its jobs")
            self.leaving.over = True
        if self.plan.local and now - self._offline > STRANDED:
            self.score.line("--", "leaves: its private server is gone; the next notebook starts both")
            self.leaving.over = True
        # When the server is back, all have one lease to say that they live.
        self._retry_at = now + min(2.0, self.plan.lease / 8, 0.1 + (now - self._offline) / 4)

    def _back_online(self) -> None:
        if self._offline is not None:
            self.score.line("--", f"the server is back after {time.monotonic() - self._offline:.1f} s")
            self._offline = None
            self._troubles.clear()
            self.claims.thirsty = True
