"""Large results in a folder that workers and notebooks share, or under an fsspec URL, in place of the store.

A horse writes, under its job's time limit, so that a file system that hangs holds up that job alone. What goes on to
parent, store and spool is a reference, a `Spilled`, which the signature over the outcome covers: what is read must be
as long, and have the same SHA-256, before anyone opens it.

    <root>/<namespace>-<user id>/<batch>/<index>-<attempt>-<random>.pickle

The root is the user's, and may be a link or shared by many. What lies under it is made by us (0700, 0600), always new,
and never reached through a link. This module needs the standard library and msgspec only: every horse imports it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from nbqueue.checks import OFF, is_url, size_text
from nbqueue.errors import BadOption, BadSignature, SpillFailed, SpillLost, TooLarge
from nbqueue.model import Spilled

SPILL_FROM = 1 << 20  # bytes; smaller results go through the store, which is quicker
MAX_SPILLED = 16 << 30  # bytes of a result, unless `max_result` says otherwise

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe in the place of a file must not hold us up
_REMEDY = "Free space there, name another folder with `spill=` or NBQUEUE_SPILL, or return the path of a file of yours."
_roots: dict[str, None] = {}  # where this process's own settings say that spilled results lie


class Place(NamedTuple):
    """Where the result of one run goes."""

    root: str
    namespace: str
    batch: str
    index: int  # type: ignore[assignment]  # the name that the field has everywhere
    attempt: int

    @classmethod
    def of(cls, wanted: str, own: str, namespace: str, batch: str, index: int, attempt: int) -> Place | None:
        """Under the root that the batch wants, else the worker's own; None where large results go through the store."""
        root = wanted or own
        return None if root in {"", OFF} else cls(root, namespace, batch, index, attempt)

    def path(self) -> tuple[str, ...]:
        """Folders and a new file name under the root."""
        import secrets

        leaf = f"{self.index}-{self.attempt}-{secrets.token_hex(8)}.pickle"
        return _own(self.namespace), self.batch, leaf


def here(root: str | None) -> None:
    """Says where spilled results lie on this machine: looked at before the place that a worker recorded."""
    if root and root != OFF:
        _roots[root] = None


def check(root: str) -> None:
    """Raises BadOption for a URL that nothing here can open."""
    if is_url(root):
        _filesystem(root)


# ---------------------------------------------------------------- writing


class Sink:
    """What a result is pickled into: memory at first, a file as soon as it is over SPILL_FROM bytes.

    Raises TooLarge over `limit` bytes, SpillFailed where there can be no file. Call `discard()` after any exception.
    """

    def __init__(self, place: Place, limit: int, what: str, remedy: str) -> None:
        self._place, self._limit, self._what, self._remedy = place, limit, what, remedy
        self._file: _File | None = None
        self._start()

    def _start(self) -> None:
        import hashlib  # a horse that spills nothing needs no OpenSSL

        self._parts: list[bytes] = []
        self._size = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Takes the next bytes."""
        self._size += len(data)
        if self._size > self._limit:
            raise TooLarge(what=self._what, limit=size_text(self._limit), remedy=self._remedy)
        if self._file is None and self._size <= SPILL_FROM:
            self._parts.append(bytes(data))
            return len(data)
        with self._errors():
            if self._file is None:
                self._file = _create(self._place)
                for part in self._parts:
                    self._put(part)
                self._parts.clear()
            self._put(data)
        return len(data)

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._hash.update(data)
        self._file.write(data)

    def begin_again(self) -> None:
        """What was written counts for nothing: the value is pickled once more, in another way."""
        self.discard()
        self._start()

    def finish(self) -> bytes | Spilled:
        """The bytes, where they were few; else where they lie by now, safely."""
        if self._file is None:
            return b"".join(self._parts)
        with self._errors():
            self._file.keep()
        found = Spilled(self._place.root, self._file.name, self._size, self._hash.digest())
        self._file = None
        return found

    def discard(self) -> None:
        """Removes what was written, as far as that is possible: else it goes with the folder of its batch."""
        if self._file is not None:
            self._file.drop()
            self._file = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except TooLarge:
            raise
        except Exception as why:  # each file system under fsspec raises errors of its own
            facts = {"what": self._what, "folder": self._place.root, "why": _reason(why), "remedy": _REMEDY}
            raise SpillFailed(**facts) from why


def _reason(why: BaseException) -> str:
    if isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full, or your share of it ({why.strerror})"
    if isinstance(why, OSError) and why.strerror:
        return f"{why.strerror}: {why.filename}" if why.filename else why.strerror
    return str(why) or type(why).__name__


class _File:
    """A new file on its way, in a folder that is open."""

    def __init__(self, place: Place) -> None:
        *folders, leaf = path = place.path()
        self.name = "/".join(path)
        self._leaf = leaf
        with ExitStack() as opened:
            self._folder = _open_root(place.root, make=True)
            opened.callback(lambda: os.close(self._folder))
            for folder in folders:
                parent, self._folder = self._folder, _open_folder(self._folder, folder, make=True)
                os.close(parent)
            self._fd = os.open(leaf, _NEW, 0o600, dir_fd=self._folder)
            opened.pop_all()

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def keep(self) -> None:
        """Returns when it is on disk, name and all."""
        os.fsync(self._fd)
        os.fsync(self._folder)
        self._close()

    def drop(self) -> None:
        with suppress(OSError):  # it is in the folder of its batch, which goes as a whole
            os.unlink(self._leaf, dir_fd=self._folder)
        self._close()

    def _close(self) -> None:
        for fd in (self._fd, self._folder):
            os.close(fd)


class _Remote(_File):
    """The same under a URL of fsspec."""

    def __init__(self, place: Place) -> None:
        self.name = "/".join(place.path())
        self._system, root = _filesystem(place.root)
        self._path = f"{root}/{self.name}"
        self._system.makedirs(self._path.rpartition("/")[0], exist_ok=True)
        self._open = self._system.open(self._path, "wb")

    def write(self, data: bytes | memoryview) -> None:
        self._open.write(data)

    def keep(self) -> None:
        self._open.close()

    def drop(self) -> None:
        with suppress(Exception):  # as above; and each file system raises errors of its own
            self._open.close()
        with suppress(Exception):
            self._system.rm_file(self._path)


def _create(place: Place) -> _File:
    return _Remote(place) if is_url(place.root) else _File(place)


def _own(namespace: str) -> str:
    """The folder of one user and namespace: of several users of one root each has one that is theirs alone."""
    return f"{namespace}-{os.getuid()}"


def _filesystem(root: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises BadOption."""
    scheme = root.partition("://")[0]
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as why:
        packages = {"s3": "fsspec s3fs", "gs": "fsspec gcsfs", "gcs": "fsspec gcsfs", "az": "fsspec adlfs"}
        command = f"pip install {packages.get(scheme, 'fsspec')}"
        raise BadOption(
            message=f"spill={root!r} needs a package that is missing here ({why}): run `{command}`, on workers too."
        ) from why
    return system, str(path).rstrip("/")


# ---------------------------------------------------------------- folders, never through links


def _open_root(root: str, *, make: bool = False) -> int:
    """A descriptor of the user's folder, which may be a link; the last part of its path is made if it is missing."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(root, 0o700)  # noqa: PTH102 - beside its kin, which take descriptors
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY)


def _open_folder(parent: int, name: str, *, make: bool = False) -> int:
    """A descriptor of a folder of ours in `parent`. Raises OSError for a link, or what others own or may write to."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
    found = os.open(name, _FOLDER, dir_fd=parent)
    facts = os.fstat(found)
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        os.close(found)
        raise PermissionError(errno.EPERM, "others own this folder, or may write to it", name)
    return found


@contextmanager
def _opened(root: str, *folders: str) -> Iterator[int]:
    """A descriptor of the last of these folders under `root`. Raises OSError."""
    with ExitStack() as opened:
        found = _open_root(root)
        opened.callback(os.close, found)
        for name in folders:
            found = _open_folder(found, name)
            opened.callback(os.close, found)
        yield found


# ---------------------------------------------------------------- reading


def read(spilled: Spilled) -> memoryview:
    """The bytes of a result, as its worker wrote them. Raises SpillLost, and BadSignature where they are others."""
    looked = []
    for root in dict.fromkeys((*_roots, spilled.root)):
        path = f"{root.rstrip('/')}/{spilled.name}"
        try:
            return _checked(path, spilled, _read_remote(root, spilled) if is_url(root) else _read(root, spilled))
        except FileNotFoundError:
            looked.append(path)
        except BadSignature:
            raise
        except Exception as why:  # each file system under fsspec raises errors of its own
            raise SpillLost(file=path, size=size_text(spilled.size), why=_reason(why)) from why
    missing = "there is no such file; it was deleted, or this folder is a different one on this machine"
    raise SpillLost(file=" or ".join(looked), size=size_text(spilled.size), why=missing)


def _read(root: str, spilled: Spilled) -> bytearray:
    *folders, leaf = spilled.name.split("/")
    with _opened(root, *folders) as folder:
        fd = os.open(leaf, _OLD, dir_fd=folder)
        with os.fdopen(fd, "rb", buffering=0) as file:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(errno.EINVAL, "it is no plain file")
            data = bytearray(spilled.size if facts.st_size == spilled.size else 0)
            view = memoryview(data)
            while view and (count := file.readinto(view)):
                view = view[count:]
            return data


def _read_remote(root: str, spilled: Spilled) -> bytearray:
    system, path = _filesystem(root)
    with system.open(f"{path}/{spilled.name}", "rb") as file:
        return bytearray(file.read(spilled.size + 1))


def _checked(path: str, spilled: Spilled, data: bytearray) -> memoryview:
    import hashlib

    if len(data) != spilled.size or hashlib.sha256(data).digest() != spilled.sha256:
        raise BadSignature(
            what=f"The file {path}, which holds a result,",
            why="it is not what the worker wrote there (`batch.retry(row)` makes it again)",
        )
    return memoryview(data)


# ---------------------------------------------------------------- removing


class Folder(NamedTuple):
    """The spilled results of one batch: how many bytes, and when the last was written, in seconds since the epoch."""

    root: str
    namespace: str
    batch: str
    size: int
    written: float


def folders(root: str, namespace: str) -> list[Folder]:
    """What of this user and namespace lies under `root`. Raises SpillLost where it cannot be looked at."""
    try:
        return list(_folders_remote(root, namespace) if is_url(root) else _folders(root, namespace))
    except FileNotFoundError:
        return []
    except Exception as why:
        raise SpillLost(file=root, size="Some", why=_reason(why)) from why


def _folders(root: str, namespace: str) -> Iterator[Folder]:
    with _opened(root, _own(namespace)) as own:
        for name in sorted(_names(own)):
            if not stat.S_ISDIR(os.stat(name, dir_fd=own, follow_symlinks=False).st_mode):
                continue
            folder = _open_folder(own, name)
            try:
                facts = [os.stat(each, dir_fd=folder, follow_symlinks=False) for each in _names(folder)]
                written = max((each.st_mtime for each in facts), default=os.fstat(folder).st_mtime)
            finally:
                os.close(folder)
            yield Folder(root, namespace, name, sum(each.st_size for each in facts), written)


def _names(folder: int) -> list[str]:
    return os.listdir(folder)


def _folders_remote(root: str, namespace: str) -> Iterator[Folder]:
    system, path = _filesystem(root)
    for folder in system.ls(f"{path}/{_own(namespace)}", detail=False):
        facts = system.ls(folder, detail=True)
        stamps = [system.modified(each["name"]).timestamp() for each in facts]
        sizes = sum(int(each["size"] or 0) for each in facts)
        yield Folder(root, namespace, Path(folder.rstrip("/")).name, sizes, max(stamps, default=0.0))


def forget(root: str, namespace: str, batch: str) -> None:
    """Removes all spilled results of a batch. Raises SpillLost where they are there, and cannot be removed."""
    try:
        if is_url(root):
            system, path = _filesystem(root)
            system.rm(f"{path}/{_own(namespace)}/{batch}", recursive=True)
            return
        import shutil

        with _opened(root, _own(namespace)) as own:
            shutil.rmtree(batch, dir_fd=own)  # through no link: it goes by descriptors, too
    except FileNotFoundError:
        return
    except Exception as why:
        path = f"{root.rstrip('/')}/{_own(namespace)}/{batch}"
        raise SpillLost(file=path, size="Some", why=f"it cannot be removed ({_reason(why)})") from why
