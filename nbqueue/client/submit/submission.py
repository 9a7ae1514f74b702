"""From a function and its calls to a batch: described, sealed, sent, shown."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import msgspec

from nbqueue import current, perform, settings, spill, wire
from nbqueue.client.calls import closures, function_diff, items
from nbqueue.client.calls.argument_hashes import ArgumentHashes
from nbqueue.client.calls.function import DescribedFunction, describe
from nbqueue.client.calls.items import Calls
from nbqueue.client.lookup import job_meta, waiting
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.session.session import Session
from nbqueue.client.spool.records import BatchHeader
from nbqueue.client.state.batch_state import BatchState
from nbqueue.client.state.selection import Selection, Sent
from nbqueue.client.submit import in_process
from nbqueue.client.submit import options as terms
from nbqueue.client.submit import upload as uploader
from nbqueue.errors import BadItems, BadOption, InsideJob, InUse, ServerRefused, SetupError
from nbqueue.model import JobMeta, Options, Spec, State, Tally, encode, new_id
from nbqueue.store.broker import Broker
from nbqueue.store.records import NewBatch, Submitted

FIRST = 1.0  # seconds that `map` waits for the first item of an iterator, so that its faults are raised by `map`
DRAWN = 48  # bits of a seed that is drawn: enough never to meet again, and few enough to be read out
LONGEST = 1_000_000  # items of an iterator that are read to compare them: it may have no end
TRIES = 8  # fresh ids, where others have the same


def refuse_inside(verb: str) -> None:
    """Raises InsideJob where a job calls `verb`."""
    if current.current() is not None:
        raise InsideJob(verb=f"nbqueue.{verb}")


@dataclass(frozen=True)
class Schedule:
    """Not before a time (in us on Redis's clock), or so many seconds from now."""

    due_us: int | None = None
    delay: float | None = None


class SubmitPlan:
    """One submission, described; `made()` sends it, or runs it here."""

    def __init__(
        self,
        session: Session,
        options: Options,
        function: object,
        calls: Callable[[DescribedFunction], Calls],
        *,
        single: bool = False,
        when: Schedule | None = None,
        source: BatchRef | None = None,
        timeout_from: str = "",
    ) -> None:
        self.session, self.options, self.single = session, options, single
        self.when, self.source, self.timeout_from = when or Schedule(), source, timeout_from
        self.mode = options.inline or session.settings.inline or (source is not None and source.inline)
        if not self.mode:
            session.attend()  # the local worker boots while we pack
        self.waits = terms.Dependencies() if self.mode else terms.dependencies(options, session)
        if isinstance(function, DescribedFunction):
            self.function = function
        else:
            salt = session.sealer.keyring.key
            inherited = {} if self.mode else session.environment()
            how: dict[str, Any] = {"salt": salt, "hooks": terms.hooks(options), "pin": options.pin}
            self.function = describe(function, env=options.env, inherited=inherited, **how)
        self.calls = calls(self.function)
        self.marks: ArgumentHashes | None = None  # of a batch with a name, which may be submitted again
        self._packed: list[bytes] | None = None
        terms.check_update_and_fresh(options)
        if options.name is not None and not self.mode:
            self._recognizable(str(function))
        self.spec = self._spec()
        self.nonce = secrets.token_hex(8)

    def _recognizable(self, name: str) -> None:
        """From now on its function and its calls can be compared with those of another session."""
        self.marks = ArgumentHashes(self.session.sealer.keyring.key, secrets.token_bytes(16))
        self.calls = replace(self.calls, rows=self.marks.reading(self.calls.rows))
        alike = function_diff.fingerprint_of(self.function.call, name)
        record = msgspec.structs.replace(self.function.record, likeness=alike)
        self.function = replace(self.function, record=record)

    def _spec(self) -> Spec:
        options = self.options
        return Spec(
            label=self.function.label,
            key=self.function.record.key,
            columns=self.calls.columns,
            timeout=options.timeout,
            timeout_from=self.timeout_from,
            grace=options.grace,
            isolate=options.isolate,
            slice=options.slice,
            preload=options.preload,
            max_result=options.max_result,
            spill=self._spill(),
            seed=secrets.randbits(DRAWN) if options.seed is None else options.seed,
            env=tuple(sorted(self.function.record.env)),
            result_ttl=options.result_ttl,
            failure_ttl=options.failure_ttl,
            labeled=self.calls.labeled,
            index_names=self.calls.index_names,
            single=self.single,
            owner=_owner(),
            description=options.description,
            meta=b"" if self.single else job_meta.packed(options.meta),
            retry=terms.rerun(options.retry),
            repeat=terms.rerun(options.repeat),
            hooks=tuple(sorted(self.function.record.hooks)),
            depends_on=self.waits.ids,
            source="" if self.source is None else self.source.id,
            salt=b"" if self.marks is None else self.marks.salt,
        )

    def _spill(self) -> str:
        """Where large results go. Raises BadOption for a URL that nothing here can open."""
        root = terms.spill_folder(self.options, self.session)
        if root and not self.mode:
            spill.check(root)
        return root

    @property
    def once(self) -> bool:
        """Whether its items can be read but once: those of an iterator that goes out as it is read."""
        return self.source is None and self.calls.n is None and self._packed is None

    def packed(self) -> list[bytes]:
        """All calls as bytes; an iterator is read to its end. Raises what is wrong with them."""
        if self._packed is None:
            rows = items.payloads(self.function, self.calls)
            endless = self.calls.n is None and self.marks is not None
            self._packed = list(itertools.islice(rows, LONGEST + 1) if endless else rows)
            if endless and len(self._packed) > LONGEST:
                raise BadItems(
                    message=f"Give a list: an iterator this long (over {LONGEST:,} items) cannot be compared with "
                    f"batch {self.options.name!r}."
                )
        return self._packed

    def made(self) -> BatchRef:
        """A new batch. Raises InUse, and what is wrong with the items, or with the store."""
        if self.mode and self.source is None:
            return self._inline(self.packed())
        if self.source is not None:
            return self._follower(self.source)
        if self.marks is not None:
            self.marks.salt = self.spec.salt
        if self.once:
            return self._stream(items.payloads(self.function, self.calls))
        return self._whole(self.packed())

    def _span(self, start: int, stop: int) -> bytes:
        return b"" if self.marks is None else self.marks.span(start, stop)

    def _batch(self, state: BatchState) -> BatchRef:
        call, name = self.function.call, self.options.name
        batch: BatchRef = BatchRef(
            self.session,
            state,
            self.spec,
            name=name,
            function=call,
            inline=self.mode,
            source=self.source,
            hooks=self.function.record.hooks,
        )
        return batch

    def _new_state(self, batch: str, told: Submitted | None = None) -> BatchState:
        epoch = "" if told is None else told.epoch
        facts, most = (batch, self.options.queue, epoch, self.spec), self.options.max_failed
        rows = None if self.source is None else self.source.state.rows
        if self.source is None and self.marks is not None and not self.single:
            # What another call adds to a named batch is no part of this one.
            rows = Sent(0 if told is None else told.n) if self._packed is None else range(len(self._packed))
        state = BatchState(*facts, max_failed=most) if rows is None else Selection(*facts, rows, max_failed=most)
        if told is not None:
            state.submitted(self._birth(batch, told), Tally(n=told.n, **{str(told.state): told.n}))
        return state

    def _birth(self, batch: str, told: Submitted) -> BatchHeader:
        session, options = self.session, self.options
        facts = (options.name, self.function.label, session.server, session.settings.namespace, told.epoch)
        now = time.time_ns() // 1000
        return BatchHeader(batch, self.nonce, self._spec_blob, options.queue, *facts, now, told.n, self.single)

    def _inline(self, payloads: list[bytes]) -> BatchRef:
        state = self._new_state(self.options.job_id or new_id(self.function.label))
        run = in_process.InlineRun(state, self.spec, self.function.call, self.mode, self.function.record.hooks)
        if self.options.meta:
            state.inline.notes = {index: JobMeta(job_meta.plain(self.options.meta)) for index in range(len(payloads))}
        if self._allowed():
            run.all(payloads)
        else:
            run.cancel(payloads, range(len(payloads)))
        return self._here(state)

    def _allowed(self) -> bool:
        """Waits for what it depends on; whether that went as asked."""
        return all(
            in_process.finished(one, allow_failure=failed_too)
            for one, failed_too in terms.inline_dependencies(self.options)
        )

    def _here(self, state: BatchState) -> BatchRef:
        batch = self._batch(state)
        self.session.here[batch.id] = batch  # no server knows it
        return batch

    # ------------------------------------------------------------ what has a length

    def _whole(self, payloads: list[bytes]) -> BatchRef:
        begun = time.monotonic()
        self._expect(payloads)
        cuts = list(uploader.parts(payloads))

        def seal(batch: str) -> list[list[bytes]]:
            sealed, start = [], 0
            for part in cuts:
                sealed.append(self.session.sealer.seal_all(wire.ARGUMENTS, batch, start, part))
                start += len(part)
            return sealed or [[]]

        own = self._own_id(payloads)
        state, sealed = self._submit(seal, last=len(cuts) < 2, own=own)
        state.expect(len(payloads))
        batch = self._held(state, payloads)
        self._spooled(state, sealed)
        self.session.collector.follow(state)
        try:
            uploader.send_parts(self.session, state, sealed, self.nonce, begun, marks=self._span(0, len(payloads)))
        except ServerRefused:
            with contextlib.suppress(SetupError):  # the caller has no handle: nothing of it is to run
                batch.cancel()
            raise
        return batch

    def _held(self, state: BatchState, payloads: list[bytes]) -> BatchRef:
        present = next((each for each in State if getattr(state.tally, each)), State.QUEUED)
        if len(payloads) != state.tally.n:
            state.count(Tally(n=len(payloads), **{str(present): len(payloads)}))
        with state.changed:
            state.arguments.add(payloads)
        return self._batch(state)

    def _spooled(self, state: BatchState, sealed: list[list[bytes]]) -> None:
        """Lets the spool have function and arguments as they are sent."""
        if not self.single or self.marks is not None:  # of many single jobs that are not to be found again it has none
            self.session.spool.add_function(state, self._function_blob)
        start = 0
        for part in sealed:
            self.session.spool.add_arguments(state, start, part)
            self.session.spool.add_hashes(state, start, self._span(start, start + len(part)))
            start += len(part)

    def _own_id(self, payloads: list[bytes]) -> str | None:
        """The id that the user gave, or that `unique` makes of function and arguments; None: any will do."""
        if self.options.job_id is not None or not self.options.unique:
            return self.options.job_id
        digest = hashlib.blake2b(self.function.record.key.encode() + payloads[0], digest_size=10).hexdigest()
        return f"{new_id(self.function.label).rpartition('-')[0]}-{digest}"

    def _submit(
        self, seal: Callable[[str], list[list[bytes]]], *, last: bool, own: str | None = None
    ) -> tuple[BatchState, list[list[bytes]]]:
        """Sends the first part: under the given id, or a fresh one, and another where that one is taken."""
        self.session.broker  # noqa: B018 - a server that never answered is told at once
        for attempt in range(TRIES):
            name = own or self._fresh_id(attempt)
            sealed = seal(name)
            send = partial(self._send, name, sealed[0], last=last)
            try:
                told = uploader.arrived(name, partial(self.session.ask, send))
            except InUse as why:
                if own is not None or why.facts["what"] != "id" or attempt == TRIES - 1:
                    raise
            else:
                return self._new_state(name, told), sealed
        raise AssertionError("the loop above returns or raises")

    def _fresh_id(self, attempt: int = 0) -> str:
        name = new_id(self.function.label, (8 if self.single else 4) + attempt)
        # Where the spool has an older batch of this id, one could be taken for the other.
        return self._fresh_id(attempt + 1) if not self.single and self.session.spool.has(name) else name

    def _send(self, name: str, part: list[bytes], broker: Broker, *, last: bool) -> Submitted:
        return broker.submit(self._new(name), part, last=last, marks=self._span(0, len(part)))

    def _new(self, batch: str) -> NewBatch:
        record, sealer, options = self.function.record, self.session.sealer, self.options
        self._spec_blob = sealer.seal(wire.SPEC, batch, -1, encode(self.spec))
        self._function_blob = sealer.seal(wire.FUNCTION, batch, -1, self._function)
        return NewBatch(
            id=batch,
            queue=options.queue,
            session=self.session.id,
            name=options.name,
            nonce=self.nonce,
            spec=self._spec_blob,
            function=self._function_blob,
            key=record.key,
            signer=sealer.keyring.current.hex(),
            python=record.python,
            host=record.host,
            result_ttl=options.result_ttl,
            failure_ttl=options.failure_ttl,
            ttl=options.ttl,
            at_front=options.at_front or self.waits.front,
            single=self.single,
            due_us=self.when.due_us,
            delay=self.when.delay,
            needs=self.waits.needs,
            source=self.spec.source,
            max_open=self.session.settings.max_open,
            meta=job_meta.sealed(sealer, batch, 0, options.meta) if self.single and options.meta else b"",
        )

    def _expect(self, payloads: list[bytes]) -> None:
        """Has what the first call's arguments need imported before all calls, rather than in each."""
        record = self.function.record
        if payloads and (named := perform.modules_in(payloads[0])):
            imports = closures.importable(named.union(record.imports), record.modules)
            self.function = replace(self.function, record=msgspec.structs.replace(record, imports=imports))

    @cached_property
    def _function(self) -> bytes:
        return encode(self.function.record)

    # ------------------------------------------------------------ one of many that are sent together

    def prepared(self) -> tuple[NewBatch, bytes, bytes]:
        """(what submit_many takes: the batch and its sealed arguments; the arguments themselves)."""
        payload = next(items.payloads(self.function, self.calls))
        self._expect([payload])
        name = self._own_id([payload]) or self._fresh_id()
        self._sealed = self.session.sealer.seal(wire.ARGUMENTS, name, 0, payload)
        return self._new(name), self._sealed, payload

    def sent(self, name: str, payload: bytes, told: Submitted) -> BatchRef:
        """The batch, after submit_many has sent it."""
        batch = self._held(self._new_state(name, told), [payload])
        self._spooled(batch.state, [[self._sealed]])
        self.session.collector.follow(batch.state)
        return batch

    # ------------------------------------------------------------ what runs on the results of another

    def _follower(self, source: BatchRef) -> BatchRef:
        items.bound(self.function, ((None,), {}, None), f"the results of {source.id}")
        if self.mode:
            return self._inline_after(source)
        state, _ = self._submit(lambda _: [[]], last=True, own=self.options.job_id)
        state.arguments.sent = None
        state.expect(source.state.expected, still_open=source.state.open)
        self._spooled(state, [])
        batch = self._batch(state)
        self.session.collector.follow(state)
        return batch

    def _inline_after(self, source: BatchRef) -> BatchRef:
        """Runs here and now: waits for the results. Raises LostByServer or Expired where they are not to be had."""
        waiting.for_batch(source, None)
        found = [source.state.outcome(index, self.session.sealer) for index in source.indexes]
        if None in found:
            raise waiting.absence(source.state, source.session, source.id)
        options = self.options
        name = options.job_id or new_id(self.function.label)
        state = BatchState(name, options.queue, "", self.spec, max_failed=options.max_failed)
        run = in_process.InlineRun(state, self.spec, self.function.call, self.mode, self.function.record.hooks)
        if self._allowed():
            run.after([outcome for outcome in found if outcome is not None])
        else:
            run.cancel([b""] * len(found), range(len(found)))
        return self._here(state)

    # ------------------------------------------------------------ what has none

    def _stream(self, payloads: Iterator[bytes]) -> BatchRef:
        """Reads on a thread. The first item is waited for a moment, so that what is wrong with it is raised here."""
        reader = uploader.IteratorReader(payloads)
        first = reader.first(FIRST)
        self._expect(first)
        try:
            state, sealed = self._submit(
                lambda batch: [self.session.sealer.seal_all(wire.ARGUMENTS, batch, 0, first)], last=False
            )
        except BaseException:
            reader.abandon()
            raise
        upload = uploader.Upload(self.session, state, self.nonce, len(first), self._span)
        state.send(upload)
        self._spooled(state, sealed)
        batch = self._held(state, first)
        self.session.collector.follow(state)
        reader.drain(upload, state)
        return batch


def plan_then(source: BatchRef, function: Callable[..., Any] | str, typed: dict[str, Any]) -> SubmitPlan:
    """`source.then(function)`: job i runs on the result of job i. Raises BadOption or BadInput."""
    refuse_inside("then")
    if strange := sorted(typed.keys() - terms.OPTION_NAMES):
        raise BadOption(
            message=f"then() has no option {strange[0]!r}. A keyword for the function goes in with "
            f"functools.partial: then(functools.partial(f, {strange[0]}=...))."
        )
    terms.check_clash("then", function, typed)
    options = Options(queue=source.queue).replaced(**terms.parse(typed))
    if not source.single:
        terms.check_for_many(options, "batch.then")

    def calls(described: DescribedFunction) -> Calls:
        terms.check_clash("then", described, typed)
        names = items.positional(described) or ("arg_0",)
        return Calls((), None, names, source.spec.labeled, source.spec.index_names)

    return SubmitPlan(source.session, options, function, calls, single=source.single, source=source)


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "?"  # a container's user may have no name
    return f"{user}@{settings.host()}"
