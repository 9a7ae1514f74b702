"""What is to be done when a job is over: callbacks, exception handlers, and the record of how they went.

They run in the horse that made the call, or in a fresh one when that is gone, and only once the outcome is settled:
whatever they do, it stands. As in RQ, a failure is told every time that a job fails, also when it will run again; a
job that returns a Retry has not failed before its runs are used up. Until its echo comes a job keeps its slot.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from nbqueue.model import CallbackResult, CallResult, Cause, Failure, State
from nbqueue.store.broker import Broker
from nbqueue.wire import ECHO, Sealer
from nbqueue.worker.ledger import Ledger, Task
from nbqueue.worker.score import Score
from nbqueue.worker.settling import AGAIN, BACK, STALE, Settler

if TYPE_CHECKING:
    from nbqueue.worker.stables import Stables
    from nbqueue.worker.stall import Stall

HOOKS = {State.FINISHED: "success", State.FAILED: "failure", State.CANCELED: "stopped"}
_NOWHERE = frozenset({Cause.LOAD, Cause.SIGNATURE})  # there is no function, or none to be trusted


def due(task: Task, ride: CallResult, answer: str, *, handlers: bool) -> tuple[str, bool]:
    """The callback to run, and whether exception handlers are called, when the store has answered this."""
    if answer in (BACK, STALE) or (answer == AGAIN and ride.cause is Cause.RETRY):
        return "", False
    if ride.state is State.CANCELED and not task.stopped:
        return "", False
    hook = HOOKS[ride.state]
    return hook if hook in task.spec.hooks else "", handlers and ride.state is State.FAILED


def warn(score: Score, task: Task, echoes: Iterable[CallbackResult]) -> None:
    """A line of the log for every callback that failed."""
    for echo in echoes:
        if echo.failure is not None:
            name = f"{echo.hook} {echo.label}".rstrip()
            score.line("!!", f"{task.label} is over, but its callback ({name}) failed: {echo.failure.type}")


def keep(broker: Broker, sealer: Sealer, task: Task, echoes: list[CallbackResult]) -> None:
    """Writes down how callbacks went."""
    blob = sealer.seal(ECHO, task.batch, task.index, msgspec.msgpack.encode(echoes))
    broker.save(task.batch, task.index, blob, None, what="echo")


@dataclass(slots=True)
class Aftermath:
    """Sees every job's end."""

    broker: Broker
    sealer: Sealer
    score: Score
    ledger: Ledger
    settler: Settler
    stables: Stables
    handlers: bool  # whether there are exception handlers
    _next: list[tuple[Task, CallResult, str, bool]] = field(default_factory=list)  # settled, and to begin
    _sent: dict[int, str] = field(default_factory=dict)  # seq -> the hook that an echo is to come of
    _stopping: dict[int, State] = field(default_factory=dict)  # to be settled so once they are dead
    _fallen: set[int] = field(default_factory=set)  # killed, because the store no longer counts them as ours
    _canceled: list[Task] = field(default_factory=list)  # dead, and perhaps canceled by someone
    _echoes: list[tuple[Task, list[CallbackResult]]] = field(default_factory=list)  # to be saved

    # ------------------------------------------------------------ when a call has ended

    def done(self, task: Task, ride: CallResult) -> None:
        """A call has ended: its slot is free, unless there is more to do for it once it is settled."""
        waits = bool(task.spec.hooks) or (self.handlers and ride.state is State.FAILED)  # the horse, for a word of us
        if not waits:
            self.ledger.done(task)
            return
        self.ledger.trail(task)
        if not any(due(task, ride, "OK", handlers=self.handlers)):
            self._let_go(task)

    def settled(self, task: Task, ride: CallResult, answer: str) -> None:
        """The store has answered: what is to be done begins with the next flush."""
        hook, handlers = due(task, ride, answer, handlers=self.handlers)
        if not hook and not handlers:
            if task.seq in self.ledger.trailing:
                self._let_go(task)
            self.settler.notes.forget([task.lease])
            return
        if task.seq not in self.ledger.trailing:
            self.ledger.trail(task)
        self._next.append((task, ride, hook, handlers))

    def _begin(self, task: Task, ride: CallResult, hook: str, handlers: bool) -> None:
        loaded = ride.cause not in _NOWHERE and (ride.cause is not Cause.TIMEOUT or ride.ended > ride.started)
        going = loaded and self.stables.after(task, hook, ride, handlers=handlers)
        self._sent[task.seq] = hook
        if not going:
            self._failed(task, Failure("LoadError", "it was not called: the function could not be loaded"))

    def _let_go(self, task: Task) -> None:
        """Nothing is to be done: the horse that waits may end. What the job said of itself may still be unsaved."""
        self.stables.let_go(task)
        self._free(task)

    def _free(self, task: Task) -> None:
        self.ledger.trailing.pop(task.seq, None)
        self._sent.pop(task.seq, None)
        self.stables.retire(task)

    # ------------------------------------------------------------ what becomes of callbacks

    def heard(self, seq: int, echoes: list[CallbackResult]) -> None:
        """Callbacks of a job are over."""
        task = self.ledger.trailing.get(seq)
        if task is None or seq not in self._sent:
            return
        self._keep(task, echoes)

    def died(self, stall: Stall, how: str) -> None:
        """A stable is no more, and with it the callbacks that it ran."""
        for task in [task for task in self.ledger.trailing.values() if task.stall is stall]:
            if task.seq in self._sent:
                self._failed(task, Failure("Crashed", f"the process that ran it died with {how}"))
            else:
                task.stall = None  # not settled yet: another stable will do it

    def _failed(self, task: Task, failure: Failure) -> None:
        self._keep(task, [CallbackResult(self._sent[task.seq] or "handler", "", failure)])

    def _keep(self, task: Task, echoes: list[CallbackResult]) -> None:
        warn(self.score, task, echoes)
        self._echoes.append((task, echoes))
        self._free(task)

    # ------------------------------------------------------------ jobs that someone ends

    def stop(self, job: str) -> bool:
        """Ends the job with this id, as canceled; False when it is not here."""
        task = next((task for task in self.ledger.tasks.values() if task.label == job), None)
        if task is None:
            return False
        task.stopped = self._runs(task)
        self._stopping[task.seq] = State.CANCELED
        self.stables.kill([task])
        self._sweep()
        return True

    def kill_running(self) -> list[str]:
        """Kills the processes of all jobs that run: these fail, as when they crash. Answers their ids."""
        tasks = [task for task in self.ledger.begun() if self._runs(task)]
        self._stopping |= {task.seq: State.FAILED for task in tasks}
        self.stables.kill(tasks)
        return [task.label for task in tasks]

    def fallen(self, tasks: Iterable[Task]) -> None:
        """Ends tasks that the store no longer counts as ours: someone canceled them, as a rule."""
        tasks = list(tasks)
        for task in tasks:
            if "stopped" in task.spec.hooks and self._runs(task):
                task.stopped = True
                self._fallen.add(task.seq)
        self.stables.kill(tasks)
        self.settler.notes.forget(task.lease for task in tasks)

    def _runs(self, task: Task) -> bool:
        return task.stall is not None and task in self.ledger.begun()

    def gone(self, task: Task) -> None:
        """A task has been killed."""
        now = time.monotonic()
        if (state := self._stopping.pop(task.seq, None)) is State.FAILED:
            failure = Failure("Crashed", "its process was killed, as its worker was told to")
            self.settler.add(task, CallResult(state, Cause.CRASHED, task.since, now, failure=failure), b"")
        elif state is not None:
            self.settler.add(task, CallResult(state, Cause.USER, task.since if task.stopped else now, now), b"")
        elif task.seq in self._fallen:
            self._fallen.discard(task.seq)
            self._canceled.append(task)
        else:
            self.settler.notes.forget([task.lease])  # what it said while it was being killed

    def _sweep(self) -> None:
        """Tasks to be stopped that were in no stable, or came back from it before they began."""
        for seq, state in list(self._stopping.items()):
            task = self.ledger.tasks.get(seq)
            if task is None or (task.stall is None and state is State.FAILED):
                del self._stopping[seq]  # its end came first, or it had not begun
            elif task.stall is None:
                self.ledger.drop(task)
                task.stopped = False
                self.gone(task)

    # ------------------------------------------------------------ to the store

    @property
    def pending(self) -> bool:
        """Whether anything is still to be done or saved."""
        return bool(self.ledger.trailing or self._echoes or self._canceled)

    def flush(self) -> None:
        """Begins what is to be done, and saves echoes; raises SetupError, and keeps what is not done."""
        self._sweep()
        while self._canceled:
            task = self._canceled[-1]
            states = self.broker.states(task.batch, [task.index])
            self._canceled.pop()
            ride = CallResult(State.CANCELED, Cause.USER, task.since, time.monotonic())
            self.settled(task, ride, "OK" if states == [State.CANCELED] else STALE)
        while self._next:
            self._begin(*self._next[0])
            self._next.pop(0)
        while self._echoes:
            task, echoes = self._echoes[0]
            self.settler.notes.save([task.lease])  # a callback may have changed the job's meta
            keep(self.broker, self.sealer, task, echoes)
            self._echoes.pop(0)
            self.settler.notes.forget([task.lease])

    def clear(self) -> None:
        """Forgets everything: the stables are gone."""
        self.ledger.trailing.clear()
        for kept in (self._next, self._sent, self._stopping, self._fallen, self._canceled, self._echoes):
            kept.clear()

    def cut(self) -> None:
        """The worker leaves: callbacks that are not over are ended with it, and that is written down."""
        self._sent |= {task.seq: hook for task, _, hook, _ in self._next}
        self._next.clear()
        for task in [task for task in self.ledger.trailing.values() if task.seq in self._sent]:
            self._failed(task, Failure("Crashed", "its worker was asked to stop, and the grace for that was over"))
        self.flush()
