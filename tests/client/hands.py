"""A worker of a few lines, in the test's own process: claim, perform, settle."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec

from nbqueue import perform, wire
from nbqueue.client.state.batch_state import opened
from nbqueue.model import CallResult, FunctionRecord, Outcome, Spec, WorkerInfo, decode, encode
from nbqueue.settings import host
from nbqueue.store.records import Fitness, Grant, Held, Settled


class Hands:
    """`work()` runs what is queued; `start()` does so on a thread until `stop()`."""

    def __init__(self, session: Any, queues: tuple[str, ...] = ("default",), slots: int = 2) -> None:
        self.broker, self.sealer = session.fresh_broker(), session.sealer
        self.queues, self.slots = queues, slots
        self.id = f"hands-{id(self):x}-{time.monotonic_ns()}"
        self.claims = 0
        self.fit = Fitness(keys=self.sealer.keyring.ids, python="any", host=host())
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        info = WorkerInfo(id=self.id, name="hands", host=host(), pid=0, slots=slots, queues=queues, python="3.11")
        # Nobody renews it: on a loaded machine a test may take minutes.
        self.broker.join(self.id, encode(info), queues, slots, lease=600.0)

    def work(self, want: int = 1000) -> int:
        """Runs up to `want` jobs; answers how many there were."""
        self.claims += 1
        token = f"{self.id}:{self.claims}"
        claimed = self.broker.claim(self.id, token, self.queues, free=want, want=want, fit=self.fit)
        settled = [one for grant in claimed.grants for one in self._run(grant)]
        self.broker.settle(self.id, settled)
        return len(settled)

    def _run(self, grant: Grant) -> list[Settled]:
        seal, batch = self.sealer, grant.batch
        spec = decode(Spec, seal.unseal(wire.SPEC, batch, -1, grant.spec))
        record = decode(FunctionRecord, seal.unseal(wire.FUNCTION, batch, -1, self.broker.function(batch)))
        function = wire.loads(record.payload)
        found = []
        for held in grant.jobs:
            payload = self._payload(grant, held)
            ride = perform.perform(function, payload, job=f"{batch}:{held.index}", max_result=spec.max_result)
            outcome = msgspec.structs.replace(self._outcome(ride, held.attempt), version=spec.version)
            blob = seal.seal(wire.OUTCOME, batch, held.index, encode(outcome), held.attempt)
            tail = seal.seal(wire.TAIL, batch, held.index, b"said something\n", held.attempt)
            more = {"rerun": ride.rerun or spec.retry, "repeat": spec.repeat}
            found.append(Settled(batch, held.index, grant.token, ride.state, blob, tail, **more))
        return found

    def _payload(self, grant: Grant, held: Held) -> bytes:
        if not grant.source:
            return self.sealer.unseal(wire.ARGUMENTS, grant.batch, held.index, held.args)
        return b"1" + opened(self.sealer, grant.source, held.index, held.args).value

    def _outcome(self, ride: CallResult, attempt: int) -> Outcome:
        runtime = int((ride.ended - ride.started) * 1e6)
        return Outcome(
            ride.state, ride.cause, attempt, self.broker.now_us() - runtime, runtime, 10, 2048, None, host(), self.id,
            ride.failure, ride.value,
        )  # fmt: skip

    def start(self) -> Hands:
        def loop() -> None:
            while not self._end.is_set():
                if not self.work():
                    self._end.wait(0.005)

        self._thread = threading.Thread(target=loop, name="hands", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(5)
        self.broker.leave(self.id)
        self.broker.connection.close()
