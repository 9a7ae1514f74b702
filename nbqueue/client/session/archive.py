"""What the spool has of a batch, into memory: where the server has it no more, or need not be asked again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nbqueue.client.spool import directory, records
from nbqueue.client.spool.reader import SpooledBatch, SpoolFile
from nbqueue.client.spool.records import BatchHeader
from nbqueue.client.spool.spool import Spool
from nbqueue.client.state.batch_state import BatchState
from nbqueue.model import Tally


def births(spool: Spool, folder: Path, name: str | None) -> Iterator[BatchHeader]:
    """What the spool says of the batches and single jobs of this id or name; None: of all batches."""
    if name is not None:
        for path in directory.files_of(folder, name):
            yield from records.headers_of(path)
        for book in _singles(spool, folder):
            births = (entry.header for entry in book.entries.values() if entry.header is not None)
            yield from (birth for birth in births if name in {birth.batch, birth.name})
    found = (birth for one in directory.list_batches(folder) if (birth := one.header()) is not None)
    yield from (birth for birth in found if name is None or birth.name == name)


def tale(spool: Spool, birth: BatchHeader) -> SpooledBatch | None:
    """All that the spool tells of one batch, or of a single job; None also where its disk does not answer."""
    folder = spool.folder
    if folder is None or not spool.is_readable():
        return None
    if birth.single:
        books = _singles(spool, folder)
        gone = {name for book in books for name in book.forgotten}
        return None if f"{birth.batch}~{birth.nonce}" in gone else SpooledBatch(birth, _of(books, birth), _size(books))
    books = [book for path in directory.copies_of(folder, birth) if (book := _read(path))]
    return SpooledBatch(birth, _of(books, birth), _size(books))


def _of(books: list[SpoolFile], birth: BatchHeader) -> list[SpoolFile]:
    entries = [(book, book.entries.get(birth.batch)) for book in books]
    return [
        book for book, each in entries if each and (each.header is None or directory.same_batch(each.header, birth))
    ]


def _size(books: list[SpoolFile]) -> int:
    return sum(book.path.stat().st_size for book in books if book.path.exists())


def _singles(spool: Spool, folder: Path) -> list[SpoolFile]:
    """The files of single jobs; each is read again only when it has grown."""
    known, found = spool.read, []
    for path in directory.single_files(folder):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            continue  # removed this moment
        if path not in known or known[path][0] != size:
            book = _read(path)
            if book is None:
                continue
            known[path] = size, book
        found.append(known[path][1])
    return found


def _read(path: Path) -> SpoolFile | None:
    try:
        return SpoolFile(path)
    except OSError:
        return None  # removed this moment, or on a disk that fails: as if it were not there


def fill(spool: Spool, state: BatchState, found: SpooledBatch) -> None:
    """Takes over outcomes that are not here, and how the batch stood."""
    with state.changed:
        if found.position >= state.cursor.position:
            state.recall(found.checkpoint)
        for index, path, each in found.outcomes():
            if index not in state.outcomes and (state.rows is None or state.holds(index)):
                light = each.blob if each.blob is not None and spool.fits_in_memory(each.blob) else None
                place = light or records.pack_offset(
                    state.outcomes.file_number(path), each.offset, each.size, each.head
                )
                state.put(index, place)


def count(state: BatchState, found: SpooledBatch) -> None:
    """Counts what is here of a batch that no server tells of."""
    if state.rows is None:
        state.count(Tally(n=max(found.n, state.tally.n)))
    state.recount()


def mend(spool: Spool, state: BatchState) -> None:
    """Takes from the spool what another session has copied of a batch that is gone, and this one has not."""
    if state.on_disk.header is None or state.whole or (found := tale(spool, state.on_disk.header)) is None:
        return
    fill(spool, state, found)
    with state.changed:
        count(state, found)


def paths(folder: Path, birth: BatchHeader) -> list[Path]:
    """The files that hold something of a batch."""
    if birth.single:
        return directory.single_files(folder)
    return directory.copies_of(folder, birth)
