"""Every function that takes apart bytes which others may have written, each with a sample that is valid.

The hypothesis tests and the atheris script share this list. What comes from the store or a pipe is bytes; what is read
from a file is written to one first.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nbqueue import current, settings, wire
from nbqueue.client import job_facts
from nbqueue.client.lookup import job_meta as client_notes
from nbqueue.client.spool import reader
from nbqueue.client.spool import records as spoolfile
from nbqueue.client.spool.records import (
    BatchHeader,
    Block,
    Checkpoint,
    Headers,
    RecordReader,
    RecordType,
    Withdrawals,
    headers_of,
)
from nbqueue.client.spool.writer import Appender
from nbqueue.client.state import batch_state
from nbqueue.errors import NbqueueError
from nbqueue.model import (
    CallbackResult,
    CallResult,
    Cause,
    Failure,
    FunctionFingerprint,
    FunctionRecord,
    Hook,
    JobMeta,
    Outcome,
    Part,
    Rerun,
    Spec,
    State,
    WorkerInfo,
    decode,
    encode,
)
from nbqueue.store import decoding, records, server
from nbqueue.worker import frames, mail, notes
from nbqueue.worker.channel import Channel

Parser = Callable[[bytes], object]
SEALER = wire.Sealer(wire.Keyring([b"a secret of sixteen letters"], "nowhere"), "fuzz")
OURS = (NbqueueError, frames.FrameError)  # all that a parser may raise
NOW = 1_700_000_000_000_000

_failure = Failure("KeyError", "'a'", "Traceback", b"pickle")
RECORDS = [
    Spec(label="f", columns=("a",), retry=Rerun(2, (1.0, 2.0)), hooks=("success",), meta=b"\x81\xa1a\x01"),
    FunctionRecord(
        payload=b"pickle",
        key="k",
        label="f",
        python="3.11",
        interpreter="/usr/bin/python",
        host="h",
        cwd="/",
        hooks={"success": Hook(b"pickle", "g")},
        likeness=FunctionFingerprint("3.11", {"code": Part(b"d", "x", 1)}, {"f": ((1, b"d"),)}),
        sources={"f.py": [(1, "text")]},
    ),
    Outcome(State.FINISHED, None, 1, NOW, 5, value=b"pickle"),
    Outcome(State.FAILED, Cause.ERROR, 1, NOW, 5, failure=_failure),
    CallResult(State.FAILED, Cause.RETRY, 1.0, 2.0, failure=_failure, rerun=Rerun(1)),
    WorkerInfo(id="w", name="w", host="h", pid=1, slots=2, queues=("default",), python="3.11"),
    JobMeta({"a": [1, {"b": None}]}, (1.0, 2.0, "words")),
    CallbackResult("success", "g", _failure),
    mail.Message("stop", "f-1", NOW, "n1"),
    Headers([BatchHeader("b", "nonce", b"spec", "q", None, "f", "server", "fuzz", "epoch", NOW, 3, False)]),
    Block([0, 1], [3, 4]),
    Withdrawals([0], [1], ["b"]),
    Checkpoint(1.0, 2, 3, False, False, True, None, [(0, 2, Cause.USER)], [1]),
]


def header(state: State, attempt: int) -> bytes:
    return struct.pack(">cH", records.LETTER[state], attempt)


def stored(batch: str = "b", index: int = 0, attempt: int = 1, value: bytes = b"pickle") -> bytes:
    """An outcome as it lies in the store."""
    outcome = Outcome(State.FINISHED, None, attempt, NOW, 5, value=value)
    return header(State.FINISHED, attempt) + SEALER.seal(wire.OUTCOME, batch, index, encode(outcome), attempt)


NOTE = b"x\0\1\x93\xa4lost\xcf" + struct.pack(">Q", NOW) + b"\xa2w1"
RUN = frames.Run(0, "b", "f", False, 1.0, 2.0, 0.1, 1 << 20, 7, [frames.Job(1, 0, 1, b"payload")])


def _progress(values: bytes) -> object:
    """The fields of a batch, from bytes that are cut into as many."""
    return decoding.view("b", NOW, _fields(values, len(decoding.FULL)), 3)


def _fields(data: bytes, count: int) -> list[bytes | None]:
    found: list[bytes | None] = [part or None for part in data.split(b"|")[:count]]
    return found + [None] * (count - len(found))


def _whole(data: bytes) -> object:
    whole = decoding.Whole.parse(_fields(data, len(decoding.PLACES)), 0, data[:8])
    return [whole.waiting(index) for index in range(3)]


def _channel(data: bytes) -> list[Any]:
    """Frames that arrive in one go at a socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours, limit=1 << 20)
        try:
            theirs.sendall(data[:100_000])
            theirs.shutdown(socket.SHUT_WR)
            return channel.receive()
        finally:
            channel.close()


def _filed(reader: Callable[[Path], object], data: bytes) -> object:
    """What `reader` makes of a file of these bytes."""
    handle, name = tempfile.mkstemp(suffix=".spool")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return reader(Path(name))
    finally:
        os.unlink(name)  # noqa: PTH108 - as mkstemp gave it


def _book(path: Path) -> object:
    book = reader.SpoolFile(path)
    found: list[object] = []
    for entry in book.entries.values():
        if entry.header is not None:
            tale = reader.SpooledBatch(entry.header, [book], 1)
            found += [tale.n, tale.position, tale.checkpoint, list(tale.outcomes()), tale.arguments(0)]
    return found


def _tables(kind: RecordType, data: bytes) -> object:
    """A file of the spool whose checksums are right, and whose table is any bytes."""
    head = spoolfile.HEAD.pack(spoolfile.MAGIC, kind, len(data), 9, zlib.crc32(data), zlib.crc32(b"blobs...."))
    record = head + spoolfile.CHECK.pack(zlib.crc32(head)) + data + b"blobs...."
    return _filed(_book, _spool() + record)


def _scan(path: Path) -> object:
    return [(record.record_type, len(record.table)) for record in RecordReader(path)], headers_of(path)


def _log(data: bytes) -> object:
    """Entries of a batch's log."""
    found = batch_state.BatchState("b", "q", "", Spec(label="f"))
    for entry in data.split(b"|")[:20]:
        found.enter(entry)
    return found.collected


def _spool() -> bytes:
    """A file of the spool, whole."""

    def written(path: Path) -> bytes:
        path.unlink()
        file = Appender(path)
        spec = SEALER.seal(wire.SPEC, "b", -1, encode(RECORDS[0]))
        file.append(
            RecordType.HEADERS, Headers([BatchHeader("b", "n", spec, "q", None, "f", "s", "fuzz", "", NOW, 2, False)])
        )
        file.append(RecordType.ARGUMENTS, Block([0, 1], [3, 4]), [b"abc", b"defg"])
        blobs = [stored("b", index) for index in range(2)]
        file.append(RecordType.OUTCOMES, Block([0, 1], list(map(len, blobs))), blobs)
        file.append(RecordType.WITHDRAWALS, Withdrawals([0], [1]))
        file.append(RecordType.CHECKPOINT, RECORDS[-1])
        file.close()
        return path.read_bytes()

    return _filed(written, b"")  # type: ignore[return-value]


def _sealed(kind: bytes, index: int = 0) -> Parser:
    return partial(SEALER.unseal, kind, "b", index)


def _record(kind: type, data: bytes) -> object:
    return decode(kind, data)


def _home(name: str, data: bytes) -> object:
    """Settings and the keyring from a home whose file of this name has these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        path.chmod(0o600)
        environ = {"NBQUEUE_HOME": folder}
        if name == "secret":
            return wire.Keyring.load(Path(folder), environ)
        if name == "server.json":
            return server.status(Path(folder))
        return settings.load(environ=environ), settings.command_tables(environ=environ)


TABLES = {
    RecordType.HEADERS: 9,
    RecordType.ARGUMENTS: 10,
    RecordType.OUTCOMES: 10,
    RecordType.WITHDRAWALS: 11,
    RecordType.CHECKPOINT: 12,
    RecordType.FORGOTTEN: 10,
}
_view = [b"default", b"3", b"0", b"", b"", b"0", b"1", b"1", b"0", b"", b"", b"17", b"18", b"0-2-user", b"D", b"5"]
PARSERS: dict[str, tuple[Parser, bytes]] = {
    "unseal": (_sealed(wire.ARGUMENTS), SEALER.seal(wire.ARGUMENTS, "b", 0, b"payload")),
    "stored": (records.Stored.parse, stored()),
    "note": (lambda data: records.Stored.parse(data).note(), NOTE),
    "opened": (partial(batch_state.opened, SEALER, "b", 0), stored()),
    "opened note": (partial(batch_state.opened, SEALER, "b", 0), NOTE),
    "past": (records.past, b"\0\0\0\3abc\0\0\0\0"),
    "view": (_progress, b"|".join(_view)),
    "whole": (_whole, b"3|0-2-user|D|b2"),
    "holder": (decoding.holder, b"w:1 2 1700000000000000 0 0"),
    "log": (_log, b"0|1|r1|c5-9|r5-9"),
    "meta": (partial(client_notes.opened, SEALER, Spec(label="f"), "b", 0), SEALER.seal(wire.META, "b", 0, b"\x90")),
    "meta as it is": (notes.meta_of, encode(RECORDS[6])),
    "plain meta": (current.unpack_meta, b"\x81\xa1a\x01"),
    "echoes": (job_facts.echoes_in, b"\x91" + encode(RECORDS[7])),
    "mail": (
        lambda data: mail.Mailbox(SEALER).read("w", data, NOW),
        mail.write(SEALER, "w", RECORDS[8]),  # type: ignore[arg-type]
    ),
    "channel": (_channel, frames.HEAD.pack(5, frames.DONE) + b"abcde" + frames.HEAD.pack(0, frames.DRAIN)),
    "run": (frames.decode_run, frames.encode(RUN)),
    "setup": (frames.decode_setup, frames.encode(frames.Setup(("a",), ("b",)))),
    "after": (frames.decode_after, frames.encode(frames.After(RUN, "success", value=b"v"))),
    "files": (frames.decode_files, frames.encode([frames.File("/a.py", 1, 2)])),
    "ride": (frames.decode_ride, encode(RECORDS[4])),
    "frame echoes": (frames.unpack_echoes, frames.pack_echoes(3, [RECORDS[7]])),  # type: ignore[list-item]
    "seqs": (frames.unpack_seqs, frames.pack_seqs([1, 2, 3])),
    "seconds": (frames.unpack_seconds, frames.pack_seconds(1.5)),
    "done": (frames.unpack_done, frames.pack_done(1, b"ride", b"tail")),
    "frame note": (frames.unpack_note, frames.pack_note(1, frames.META, b"\x80")),
    "spool": (partial(_filed, _book), _spool()),
    "spool records": (partial(_filed, _scan), _spool()),
    "config": (partial(_home, "config.toml"), b'url = "redis://h"\n[worker]\nqueues = ["a"]\n'),
    "connection": (partial(_home, "connection.toml"), b'url = "redis://h"\n'),
    "secret": (partial(_home, "secret"), b"a" * 40 + b"\n" + b"b" * 40),
    "server.json": (
        partial(_home, "server.json"),
        b'{"host": "h", "pid": 1, "born": "2", "socket": "/no/such/socket", "port": 1}',
    ),
}
PARSERS |= {f"table {kind.name}": (partial(_tables, kind), encode(RECORDS[i])) for kind, i in TABLES.items()}
PARSERS |= {
    f"record {type(each).__name__} {i}": (partial(_record, type(each)), encode(each)) for i, each in enumerate(RECORDS)
}
