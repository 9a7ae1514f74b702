"""From a function and its calls to a batch: described, sealed, sent, shown."""

from __future__ import annotations

import getpass
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from nbqueue import perform, settings, wire
from nbqueue.client import inline, items, progress, uploader
from nbqueue.client.batch import Batch
from nbqueue.client.function import Function, describe
from nbqueue.client.items import Calls
from nbqueue.client.session import Session
from nbqueue.client.watch import Watch
from nbqueue.errors import InsideJob, InUse
from nbqueue.model import Options, Spec, Tally, encode, new_id
from nbqueue.store.broker import Broker
from nbqueue.store.records import NewBatch

FIRST = 1.0  # seconds that `map` waits for the first item of an iterator, so that its faults are raised by `map`
TRIES = 8  # fresh ids, where others have the same


def refuse_inside(verb: str) -> None:
    """Raises InsideJob where a job calls `verb`."""
    if perform.current() is not None:
        raise InsideJob(verb=f"nbqueue.{verb}")


class Submission:
    """One submission. `run()` gives the Batch."""

    def __init__(
        self,
        session: Session,
        options: Options,
        function: object,
        calls: Callable[[Function], Calls],
        *,
        single: bool = False,
    ) -> None:
        self.session, self.options, self.single = session, options, single
        self.mode = options.inline or session.settings.inline
        if not self.mode:
            session.attend()  # the local worker boots while we pack
        salt = session.sealer.keyring.key
        self.function = describe(function, env=options.env, salt=salt)
        self.calls = calls(self.function)
        self.spec = self._spec()
        self.nonce = secrets.token_hex(8)

    def _spec(self) -> Spec:
        options = self.options
        return Spec(
            label=self.function.label,
            key=self.function.record.key,
            columns=self.calls.columns,
            timeout=options.timeout,
            grace=options.grace,
            isolate=options.isolate,
            slice=options.slice,
            preload=options.preload,
            max_result=options.max_result,
            seed=secrets.randbits(63) if options.seed is None else options.seed,
            env=options.env,
            result_ttl=options.result_ttl,
            failure_ttl=options.failure_ttl,
            labeled=self.calls.labeled,
            index_names=self.calls.index_names,
            single=self.single,
            owner=_owner(),
        )

    def run(self) -> Batch[Any]:
        """Submits, and shows the batch. Raises what is wrong with the items, or with the store."""
        payloads = items.payloads(self.function, self.calls)
        if self.mode:
            return self._inline(list(payloads))
        batch = self._whole(list(payloads)) if self.calls.n is not None else self._stream(payloads)
        batch.visible = progress.wanted(batch, self.options.progress) and not self.single
        if batch.visible:
            progress.announce(batch)
        return batch

    def _batch(self, watch: Watch) -> Batch[Any]:
        call, name = self.function.call, self.options.name
        return Batch(self.session, watch, self.spec, name=name, function=call, inline=self.mode)

    def _watch(self, batch: str, epoch: str = "") -> Watch:
        return Watch(batch, self.options.queue, epoch, self.spec, max_failed=self.options.max_failed)

    def _inline(self, payloads: list[bytes]) -> Batch[Any]:
        watch = self._watch(new_id(self.function.label))
        inline.run(watch, self.spec, self.function.call, self.mode, payloads)
        return self._batch(watch)

    # ------------------------------------------------------------ what has a length

    def _whole(self, payloads: list[bytes]) -> Batch[Any]:
        begun = time.monotonic()
        cuts = list(uploader.parts(payloads))

        def seal(batch: str) -> list[list[bytes]]:
            sealed, start = [], 0
            for part in cuts:
                sealed.append(self.session.sealer.seal_all(wire.ARGUMENTS, batch, start, part))
                start += len(part)
            return sealed or [[]]

        watch, sealed = self._submit(seal, last=len(cuts) < 2)
        watch.expected = len(payloads)
        watch.tally = Tally(n=len(payloads), queued=len(payloads))
        with watch.changed:
            watch.remember(payloads)
        batch = self._batch(watch)
        watch.over = not payloads  # an empty batch is done from the start
        self.session.collector.follow(watch)
        uploader.send_parts(self.session, watch, sealed, self.nonce, begun)
        return batch

    def _submit(self, seal: Callable[[str], list[list[bytes]]], *, last: bool) -> tuple[Watch, list[list[bytes]]]:
        """Sends the first part under a fresh id; another id where that one is taken."""
        epoch = self.session.ask(lambda broker: broker.epoch())
        for attempt in range(TRIES):
            name = new_id(self.function.label, (8 if self.single else 4) + attempt)
            sealed = seal(name)
            send = partial(self._send, name, sealed[0], last=last)
            try:
                self.session.ask(send)
            except InUse as why:
                if why.facts["what"] != "id" or attempt == TRIES - 1:
                    raise
            else:
                return self._watch(name, epoch), sealed
        raise AssertionError("the loop above returns or raises")

    def _send(self, name: str, part: list[bytes], broker: Broker, *, last: bool) -> None:
        broker.submit(self._new(name), part, last=last)

    def _new(self, batch: str) -> NewBatch:
        record, sealer, options = self.function.record, self.session.sealer, self.options
        return NewBatch(
            id=batch,
            queue=options.queue,
            session=self.session.id,
            name=options.name,
            nonce=self.nonce,
            spec=sealer.seal(wire.SPEC, batch, -1, encode(self.spec)),
            function=sealer.seal(wire.FUNCTION, batch, -1, encode(record)),
            key=record.key,
            signer=sealer.keyring.current.hex(),
            python=record.python,
            host=record.host,
            result_ttl=options.result_ttl,
            failure_ttl=options.failure_ttl,
            ttl=options.ttl,
            at_front=options.at_front,
            single=self.single,
        )

    # ------------------------------------------------------------ what has none

    def _stream(self, payloads: Iterator[bytes]) -> Batch[Any]:
        """Reads on a thread. The first item is waited for a moment, so that what is wrong with it is raised here."""
        reader = uploader.Reader(payloads)
        first = reader.first(FIRST)
        try:
            watch, _ = self._submit(
                lambda batch: [self.session.sealer.seal_all(wire.ARGUMENTS, batch, 0, first)], last=False
            )
        except BaseException:
            reader.abandon()
            raise
        with watch.changed:
            watch.remember(first)
        watch.open = True
        watch.tally = Tally(n=len(first), queued=len(first))
        upload = uploader.Upload(self.session, watch, self.nonce, len(first))
        watch.upload = upload
        batch = self._batch(watch)
        self.session.collector.follow(watch)
        reader.drain(upload, watch)
        return batch


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "?"  # a container's user may have no name
    return f"{user}@{settings.host()}"
