"""From a claim to tasks: signatures are checked here, by the parent, before a stable sees a byte."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from nbqueue import perform
from nbqueue.errors import BadSignature
from nbqueue.model import CallResult, Cause, Failure, FunctionRecord, Outcome, Spec, State, decode
from nbqueue.store.broker import Broker
from nbqueue.store.records import Claimed, Grant, Held, Stored
from nbqueue.wire import ARGUMENTS, FUNCTION, META, OUTCOME, SPEC, Sealer
from nbqueue.worker import notes
from nbqueue.worker.ledger import Ledger, Task

MOST_ATTEMPTS = (1 << 16) - 1  # what the head of an outcome can tell
_REMEMBERED = 256  # specs of batches, so that a batch's second claim need not check its spec again


@dataclass(slots=True)
class Intake:
    """Turns grants into tasks; what does not verify becomes a failure at once, and touches nothing else."""

    broker: Broker
    sealer: Sealer
    ledger: Ledger
    isolate: bool = False  # a process of its own for every job, whatever the batch says
    _specs: dict[str, tuple[bytes, Spec]] = field(default_factory=dict)

    def take(self, claimed: Claimed) -> list[tuple[Task, CallResult]]:
        """Adds what a claim gave to the ledger; returns the jobs that failed their check, with their rides."""
        bad: list[tuple[Task, CallResult]] = []
        for grant in claimed.grants:
            bad += self._take(grant)
        return bad

    def _take(self, grant: Grant) -> list[tuple[Task, CallResult]]:
        try:
            spec = self._spec(grant)
        except BadSignature as why:
            broken = [self._task(grant, i, b"", Spec(label=grant.batch)) for i in range(len(grant.jobs))]
            return [(task, refused(why)) for task in broken]
        good: list[Task] = []
        bad: list[tuple[Task, CallResult]] = []
        for place, job in enumerate(grant.jobs):
            try:
                payload = self._payload(grant, job, spec)
                meta = self._meta(grant.batch, job, spec)
            except BadSignature as why:
                bad.append((self._task(grant, place, b"", spec), refused(why)))
            else:
                good.append(self._task(grant, place, payload, spec, meta))
        self.ledger.add(good)
        return bad

    def _payload(self, grant: Grant, job: Held, spec: Spec) -> bytes:
        """The arguments of a job, as perform.pack makes them. Raises BadSignature."""
        if grant.source == spec.source == "":
            return self.sealer.unseal(ARGUMENTS, grant.batch, job.index, job.args)
        what = f"The argument of {grant.batch}:{job.index}"
        if grant.source != spec.source:
            raise BadSignature(what=what, why="it is to come from another batch than the one that was submitted")
        stored = Stored.parse(job.args, what)
        if not stored.signed:
            raise BadSignature(what=what, why="no worker has signed it")
        blob = self.sealer.unseal(OUTCOME, spec.source, job.index, stored.body, stored.attempt)
        outcome = decode(Outcome, blob, what)
        payload = perform.handed_on(outcome)
        if outcome.state is not State.FINISHED or payload is None:
            raise BadSignature(what=what, why=f"{spec.source}:{job.index} has no result")
        return payload

    def _meta(self, batch: str, job: Held, spec: Spec) -> bytes:
        if not job.meta:
            return spec.meta
        return notes.meta_of(self.sealer.unseal(META, batch, job.index, job.meta))

    def _task(self, grant: Grant, place: int, payload: bytes, spec: Spec, meta: bytes = b"") -> Task:
        job = grant.jobs[place]
        return Task(
            seq=self.ledger.next_seq(),
            batch=grant.batch,
            index=job.index,
            attempt=min(max(job.attempt, 0), MOST_ATTEMPTS),
            token=grant.token,
            payload=payload,
            spec=spec,
            since=time.monotonic(),
            queue=grant.queue,
            meta=meta,
            retried=job.retried,
            repeated=job.repeated,
        )

    def _spec(self, grant: Grant) -> Spec:
        known = self._specs.get(grant.batch)
        if known and known[0] == grant.spec:
            return known[1]
        spec = decode(Spec, self.sealer.unseal(SPEC, grant.batch, -1, grant.spec), f"The description of {grant.batch}")
        if self.isolate and not spec.isolate:
            spec = msgspec.structs.replace(spec, isolate=True)
        if len(self._specs) >= _REMEMBERED:
            del self._specs[next(iter(self._specs))]
        self._specs[grant.batch] = (grant.spec, spec)
        return spec

    def function(self, batch: str, key: str) -> FunctionRecord:
        """The function of a batch. Raises BadSignature, also when it is not the function that the spec names."""
        blob = self.broker.function(batch)
        what = f"The function of {batch}"
        if blob is None:
            raise BadSignature(what=what, why="it is not there")
        record = decode(FunctionRecord, self.sealer.unseal(FUNCTION, batch, -1, blob), what)
        if record.key != key:
            raise BadSignature(what=what, why="it is another function than the one that was submitted")
        return record


def refused(why: BadSignature) -> CallResult:
    """The outcome of a job whose bytes were not signed, or not for this place."""
    return failed(Cause.SIGNATURE, Failure("nbqueue.errors.BadSignature", str(why)))


def failed(cause: Cause, failure: Failure, code: int | None = None) -> CallResult:
    """The outcome of a job that never ran to an end of its own."""
    now = time.monotonic()
    return CallResult(State.FAILED, cause, now, now, failure=failure, code=code)
