"""Signed bytes: what leaves one process for another, and comes back.

`seal` signs with HMAC-SHA256 over version, key id, namespace, kind, batch, index, attempt, length and payload; `unseal`
checks all of that before anyone opens the payload. A function cannot be replayed as a result, nor one job's bytes as
another's. The secret is made at first use in `~/.nbqueue/secret`, as Erlang's cookie or munge's key: a shared home
makes a cluster work without any setting.

Layout: version (1 byte), key id (4), MAC cut to 16 bytes (RFC 2104, 5), payload.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import pkgutil
import stat
import struct
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, Protocol

import cloudpickle

from nbqueue.checks import size_text
from nbqueue.errors import BadSecret, BadSignature, SpillFailed, TooLarge, UnknownKey
from nbqueue.model import Spec, decode

VERSION = b"\x01"
_HEAD = 21
_LONGEST = 1 << 16  # bytes of a secret file
_NUMBERS = struct.Struct(">qIQ")
_MOST_BEGUN = 256  # HMACs of batches that are kept

FUNCTION, SPEC, ARGUMENTS, OUTCOME, META, MAIL, TAIL, ECHO = (
    b"fn",
    b"spec",
    b"args",
    b"out",
    b"meta",
    b"mail",
    b"tail",
    b"echo",
)


class Keyring:
    """The secrets that this user signs with (the first) and accepts (all of them)."""

    def __init__(self, keys: list[bytes], path: str, file: Path | None = None) -> None:
        self.path = path
        self._file, self._stamp = file, _stamp(file)
        self._keys = _named(keys)
        self.current, self.key = next(iter(self._keys.items()))

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys, in hexadecimal; the first signs."""
        return tuple(key.hex() for key in self._keys)

    def find(self, key_id: bytes) -> bytes | None:
        """The secret with this id, also where it was added to the file by now; None where there is none."""
        if key_id not in self._keys:
            self._look_again()
        return self._keys.get(key_id)

    def _look_again(self) -> None:
        """Takes in what was added to the file since it was read: a key is replaced while notebooks and workers run."""
        if self._file is None or (stamp := _stamp(self._file)) == self._stamp:
            return
        self._stamp = stamp
        with contextlib.suppress(BadSecret):  # it is no good now; what was read from it before goes on
            self._keys = self._keys | _named(_parse(_read(self._file), self.path))

    @classmethod
    def load(cls, home: Path, environ: Mapping[str, str] = os.environ) -> Keyring:
        """The keys of NBQUEUE_SECRET, or of `home/secret`, which is made if there is none. Raises BadSecret."""
        text = environ.get("NBQUEUE_SECRET")
        if text:
            return cls(_parse(text, "NBQUEUE_SECRET"), "NBQUEUE_SECRET")
        path = home / "secret"
        if not os.path.lexists(path):
            _create(path)
        return cls(_parse(_read(path), str(path)), str(path), path)


def _stamp(file: Path | None) -> tuple[int, int] | None:
    """What changes when a file is written or replaced."""
    try:
        facts = None if file is None else file.lstat()
    except OSError:
        return None
    return None if facts is None else (facts.st_mtime_ns, facts.st_ino)


def _named(keys: list[bytes]) -> dict[bytes, bytes]:
    """Keys by their ids."""
    import hashlib

    return {hashlib.sha256(b"nbqueue key id" + key).digest()[:4]: key for key in keys}


def _create(path: Path) -> None:
    """Writes a fresh secret so that of two processes that start at once, both read the same one."""
    import secrets

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".secret-{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was first: its secret is ours too
        finally:
            draft.unlink()
    except OSError as why:
        remedy = "Set NBQUEUE_HOME to a folder that you may write to, or NBQUEUE_SECRET to a long random text."
        raise BadSecret(path=path, why=f"it cannot be written ({why})", remedy=remedy) from why


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as why:
        remedy = f"Make it a plain file of yours: `rm {path}` lets nbqueue make a new one."
        raise BadSecret(path=path, why=f"it cannot be opened as a plain file ({why})", remedy=remedy) from why
    try:
        _check(path, os.fstat(descriptor))
    except BadSecret:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST or not data.isascii():
        remedy = "A secret is lines of 64 random letters and digits. Remove it, and nbqueue makes a new one."
        raise BadSecret(path=path, why="it contains more than lines of plain text", remedy=remedy)
    return data.decode("ascii")


def _check(path: Path, facts: os.stat_result) -> None:
    """Raises BadSecret unless the file is plain, ours, and nobody else's to read."""
    if not stat.S_ISREG(facts.st_mode):
        raise BadSecret(path=path, why="it is no plain file", remedy=f"Remove it: `rm -r {path}`.")
    if facts.st_uid != os.getuid():
        remedy = f"Run `rm {path}` as its owner, or set NBQUEUE_HOME to a folder of your own."
        raise BadSecret(path=path, why=f"it belongs to user {facts.st_uid}, not to you", remedy=remedy)
    if facts.st_mode & 0o077:
        raise BadSecret(path=path, why="others may read or write it", remedy=f"Run `chmod 600 {path}`.")


def _parse(text: str, path: str) -> list[bytes]:
    keys = [line.strip().encode() for line in text.replace(",", "\n").splitlines() if line.strip()]
    if not keys:
        raise BadSecret(path=path, why="it is empty", remedy="Remove it, and nbqueue makes a new one.")
    if short := [key for key in keys if len(key) < 16]:
        why = f"a key of {len(short[0])} characters is too short"
        raise BadSecret(path=path, why=why, remedy="Use at least 16 characters, better 64 random ones.")
    return keys


class Sealer:
    """Seals and unseals within one namespace."""

    def __init__(self, keyring: Keyring, namespace: str) -> None:
        # Imported here, since a stable imports this module to unpickle only, and forks faster without OpenSSL.
        import hmac

        self._new, self._same = hmac.new, hmac.compare_digest
        self.keyring = keyring
        self._namespace = namespace.encode()
        self._begun: dict[tuple[bytes, bytes, str], Any] = {}  # see _begin

    def _begin(self, key_id: bytes, key: bytes, kind: bytes, batch: str) -> Any:
        """The HMAC of a batch's records of one kind, as far as it is the same for all of them; to be copied."""
        place = key, kind, batch
        if (found := self._begun.get(place)) is None:
            name = batch.encode()
            sizes = struct.pack(">HHH", len(self._namespace), len(kind), len(name))
            context = b"".join((VERSION, key_id, sizes, self._namespace, kind, name))
            if len(self._begun) >= _MOST_BEGUN:
                self._begun.clear()
            found = self._begun[place] = self._new(key, context, "sha256")
        return found

    def seal(self, kind: bytes, batch: str, index: int, payload: bytes, attempt: int = 0) -> bytes:
        """`payload`, signed for this place and no other. An index of -1 stands for the whole batch."""
        ring = self.keyring
        mac = self._begin(ring.current, ring.key, kind, batch).copy()
        mac.update(_NUMBERS.pack(index, attempt, len(payload)))
        mac.update(payload)
        return b"".join((VERSION, ring.current, mac.digest()[:16], payload))

    def seal_all(self, kind: bytes, batch: str, start: int, payloads: list[bytes]) -> list[bytes]:
        """`payloads` signed for the indexes from `start` on."""
        return [self.seal(kind, batch, index, payload) for index, payload in enumerate(payloads, start)]

    def unseal(self, kind: bytes, batch: str, index: int, blob: bytes, attempt: int = 0) -> bytes:
        """The payload, if `blob` was sealed for just this place; raises BadSignature or UnknownKey."""
        if len(blob) < _HEAD or blob[:1] != VERSION:
            raise BadSignature(what=_what(kind, batch, index), why="it is incomplete or of another version")
        key_id, payload = blob[1:5], blob[_HEAD:]
        key = self.keyring.find(key_id)
        if key is None:
            raise UnknownKey(what=_what(kind, batch, index), key=key_id.hex(), path=self.keyring.path)
        if not (-1 <= index < 1 << 63 and 0 <= attempt < 1 << 32):
            raise BadSignature(what=_what(kind, batch, index), why="there is no such place")
        mac = self._begin(key_id, key, kind, batch).copy()
        mac.update(_NUMBERS.pack(index, attempt, len(payload)))
        mac.update(payload)
        if not self._same(mac.digest()[:16], blob[5:_HEAD]):
            why = "the signature does not fit the content and its place"
            raise BadSignature(what=_what(kind, batch, index), why=why)
        return payload


def _what(kind: bytes, batch: str, index: int) -> str:
    """What was sealed, for messages."""
    return f"The {_WORDS.get(kind, 'record')} of {batch}" + (f":{index}" if index >= 0 else "")


_WORDS = {
    FUNCTION: "function",
    SPEC: "description",
    ARGUMENTS: "arguments",
    OUTCOME: "outcome",
    META: "meta",
    MAIL: "mail",
    TAIL: "log",
    ECHO: "callbacks",
}


def peek(blob: bytes) -> bytes:
    """The payload without any check: only for records that are shown and never trusted or unpickled."""
    return blob[_HEAD:]


def shown_spec(blob: bytes) -> Spec:
    """A sealed description of a batch without any check, to be shown; whose bytes are none is called unreadable."""
    try:
        return decode(Spec, peek(blob), "A batch's description")
    except BadSignature:
        return Spec(label="(unreadable)")


# ---------------------------------------------------------------- pickling


class _Capped(io.BytesIO):
    """Memory that refuses to grow over a limit while it is written, not after."""

    def __init__(self, limit: int, what: str, remedy: str) -> None:
        super().__init__()
        self._left, self._facts = limit, {"what": what, "limit": size_text(limit), "remedy": remedy}

    def write(self, data: Any) -> int:
        size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        self._left -= size
        if self._left < 0:
            raise TooLarge(**self._facts)
        return super().write(data)


_PLAIN = (int, float, bool, type(None))


def is_plain(value: Any) -> bool:
    """Whether it is small, and needs no care to be pickled."""
    kind = type(value)
    return kind in _PLAIN or (kind in (str, bytes) and len(value) < 10_000)


def dumps(value: Any, limit: int, what: str = "This value", remedy: str = "") -> bytes:
    """`value` as a pickle of at most `limit` bytes. Raises TooLarge, or whatever pickling raises.

    The C pickler first; cloudpickle where it fails, and where the pickle names `__main__`, which is another module in
    the process that will open it.
    """
    if is_plain(value):
        return pickle.dumps(value, 5)
    file = _Capped(limit, what, remedy)
    try:
        pickle.Pickler(file, 5).dump(value)
    except TooLarge:
        raise
    except Exception:  # noqa: BLE001 - any class may refuse; cloudpickle then decides and says why
        return by_value(value, limit, what, remedy)
    data = file.getvalue()
    if b"__main__" in data or cloudpickle.list_registry_pickle_by_value():
        return by_value(value, limit, what, remedy)
    return data


_theirs = cloudpickle.Pickler.dispatch_table


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    """As cloudpickle does, which leaves out the file since 3.1.3: tracebacks and warnings name it."""
    make, parts = _theirs[CodeType](code)
    return _code, (code.co_filename, make, parts)


def _code(file: str, make: Callable[..., CodeType], parts: tuple[Any, ...]) -> CodeType:
    return make(*parts).replace(co_filename=file)


CACHED: type = type(functools.cache(len))


def _reduce_cached(thing: Any) -> Any:
    """A function under `lru_cache` or `cache`: the cache is empty where it is opened."""
    if by_reference(thing):
        return thing.__reduce__()
    # All of it, although lru_cache copies it from the function: that may not be whole yet, where it calls itself.
    state = {name: value for name, value in vars(thing).items() if name not in {"__wrapped__", "cache_parameters"}}
    return _cached, (thing.__wrapped__, *thing.cache_parameters().values()), state


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_cached_property(thing: Any) -> tuple[Any, ...]:
    """Without the lock that it holds before Python 3.12."""
    return type(thing), (thing.func,), {"attrname": thing.attrname}


def _reduce_weak(thing: Any) -> tuple[Any, ...]:
    """As cloudpickle does for a WeakSet: the cache of `functools.singledispatch` is one."""
    return type(thing), (dict(thing),)


_shells: set[type] = set()


def _meet_shell() -> None:
    """Lets cells travel that use IPython's shell (`!ls`), or its `exit`: a job has something that stands for them."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and type(shell) not in _shells:
        exiter = type(getattr(shell, "exiter", None))
        _shells.update({type(shell), exiter} - {type(None)})
        _ByValue.dispatch_table |= {exiter: _reduce_exiter, type(shell): _reduce_shell}


def is_shell(thing: Any) -> bool:
    """Whether it is IPython's shell, or its `exit`."""
    return type(thing) in _shells


def _reduce_exiter(_: Any) -> tuple[Any, ...]:
    return pkgutil.resolve_name, ("sys:exit",)


def _reduce_shell(_: Any) -> tuple[Any, ...]:
    return _shell, ()


def _shell() -> Any:
    return pkgutil.resolve_name("nbqueue.worker.notebook:get_ipython")()


def _is_cells_open(function: FunctionType) -> bool:
    """Whether it is the `open` of IPython's cells, which refuses some files; a job has Python's own."""
    wrapped, module = getattr(function, "__wrapped__", None), function.__globals__.get("__name__")
    return wrapped is open and module == "IPython.core.interactiveshell"


def _reduce_method(method: MethodType) -> Any:
    """A method of the shell by its name: its class is not to be imported where it is opened."""
    if is_shell(method.__self__):
        return getattr, (method.__self__, method.__func__.__name__)
    return _theirs[MethodType](method)


class _ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    """Functions and classes of a notebook travel whole."""

    dispatch_table = _theirs.new_child(
        {
            CodeType: _reduce_code,
            MethodType: _reduce_method,
            CACHED: _reduce_cached,
            functools.cached_property: _reduce_cached_property,
            weakref.WeakKeyDictionary: _reduce_weak,
            weakref.WeakValueDictionary: _reduce_weak,
        }
    )

    def __init__(self, file: Any) -> None:
        _meet_shell()
        super().__init__(file, 5)

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is FunctionType and _is_cells_open(thing):
            return pkgutil.resolve_name, ("io:open",)
        return super().reducer_override(thing)


def by_value(value: Any, limit: int, what: str = "This value", remedy: str = "") -> bytes:
    """As dumps, with cloudpickle: functions and classes of a notebook travel whole."""
    file = _Capped(limit, what, remedy)
    _ByValue(file).dump(value)
    return file.getvalue()


class _Rebuilding(_ByValue):
    """Exceptions are made again without their own `__init__`, which may ask for more than the arguments they keep."""

    met = False

    def reducer_override(self, thing: Any) -> Any:
        kind = type(thing)
        if isinstance(thing, BaseException) and getattr(kind.__reduce__, "__objclass__", None) in kind.__mro__[1:]:
            self.met = True
            reduced: Any = thing.__reduce__()
            return _exception, (kind, reduced[1]), *reduced[2:]
        return super().reducer_override(thing)


def _exception(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    base: Any = next(each for each in kind.__mro__ if each.__module__ == "builtins")
    made: BaseException = base.__new__(kind, *args)
    base.__init__(made, *args)
    return made


def rebuilding(value: Any, limit: int) -> bytes | None:
    """As by_value, for what did not open: its exceptions are rebuilt from what they hold. None: it has none."""
    file = _Capped(limit, "This value", "")
    pickler = _Rebuilding(file)
    pickler.dump(value)
    return file.getvalue() if pickler.met else None


def names_code(data: bytes) -> bool:
    """Whether opening `data` may call something: False only for plain data, which nothing keeps from being opened."""
    return pickle.STACK_GLOBAL in data


class Sink(Protocol):
    """What a value is pickled into as it is read, so that it need not be in memory twice."""

    def write(self, data: bytes | memoryview) -> int:
        """Takes the next bytes."""

    def begin_again(self) -> None:
        """What was written counts for nothing."""


class _Stream:
    """Hands a pickler's bytes on, and sees whether they name `__main__`."""

    def __init__(self, sink: Sink) -> None:
        self._write = sink.write
        self.whole = False  # whether the value must travel by value

    def write(self, data: Any) -> int:
        part = data if isinstance(data, bytes) else pickle.PickleBuffer(data).raw()
        # Names come in frames, which the pickler ends at 64 kB and between two names; what is longer is data.
        if len(part) < 1 << 20 and not self.whole:
            self.whole = b"__main__" in bytes(part)
        return self._write(part)


def dump(value: Any, sink: Sink) -> None:
    """As dumps, into a sink. Raises what it raises, and whatever pickling raises."""
    stream = _Stream(sink)
    try:
        pickle.Pickler(stream, 5).dump(value)
    except (TooLarge, SpillFailed):
        raise  # another way to pickle it changes nothing
    except Exception:  # noqa: BLE001 - as in dumps
        stream.whole = True
    if stream.whole or cloudpickle.list_registry_pickle_by_value():
        sink.begin_again()
        _ByValue(_Stream(sink)).dump(value)


def loads(data: bytes | memoryview) -> Any:
    """The value in a pickle that `unseal` has checked (or that never left this machine's pipes)."""
    return pickle.loads(data)


_MOST_STEPS = 2_000  # of a pickle, read for the names in it: those of its classes come early


def modules_named(data: bytes | memoryview) -> set[str]:
    """The modules that opening this pickle imports, as far as its first steps tell; it is not opened."""
    raw = bytes(data)
    if pickle.STACK_GLOBAL not in raw:
        return set()
    import itertools
    import pickletools

    found = set[str]()
    memo: list[str] = []
    last = ("", "")  # of what the last two steps have put down, the texts: such a pair names a class or function
    for step, argument, _ in itertools.islice(pickletools.genops(raw), _MOST_STEPS):
        if step.name == "STACK_GLOBAL":
            found.add(last[0])
        if step.name == "MEMOIZE":
            memo.append(last[1])
        elif step.name in {"BINGET", "LONG_BINGET"}:
            last = last[1], memo[int(argument or 0)]
        elif step.name != "FRAME":
            last = last[1], argument if isinstance(argument, str) else ""
    return found - {""}


class _Scale(io.RawIOBase):
    """A sink that counts and keeps nothing."""

    size = 0

    def write(self, data: Any) -> int:
        length = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        self.size += length
        return length


def measured(value: Any) -> int:
    """How many bytes `value` takes when it is pickled by value; nothing is kept. Raises whatever pickling raises."""
    scale = _Scale()
    _ByValue(scale).dump(value)
    return scale.size


def by_reference(thing: Any) -> bool:
    """Whether a function or class is imported where it is opened; one of a notebook or script travels whole."""
    module = getattr(thing, "__module__", None)
    if not isinstance(module, str) or module in {"__main__", "__mp_main__"} or travels_whole(module):
        return False
    found: Any = sys.modules.get(module)
    for part in getattr(thing, "__qualname__", "?").split("."):
        found = getattr(found, part, None)
    return found is thing or (type(thing) is FunctionType and _is_cells_open(thing))


def closed_over(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """(name, value) of the variables around a function that it uses, but for those that have no value yet."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):
            yield name, cell.cell_contents


def travels_whole(module: str) -> bool:
    """Whether the user asked cloudpickle to send this module, or a package around it, by value."""
    named = cloudpickle.list_registry_pickle_by_value()
    return any(module == name or module.startswith(name + ".") for name in named)


# cloudpickle's own: each class that it has opened by value, so that a second pickle of the class gives the same one.
_classes: MutableMapping[str, type] = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID  # noqa: SLF001 - as above


def known_classes() -> dict[str, type]:
    """The classes that travelled by value and are known here, by cloudpickle's id."""
    return dict(_classes)


def know_classes(classes: Mapping[str, type]) -> None:
    """Makes these the only ones: another that comes is a new class, as it was sent."""
    if classes or _classes:
        _classes.clear()
        _classes.update(classes)
