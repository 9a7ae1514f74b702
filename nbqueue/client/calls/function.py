"""Describing a function for workers: its name, its pickle, its modules, and the key of the forkserver that runs it."""

from __future__ import annotations

import hashlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from nbqueue import settings, wire
from nbqueue.checks import brief, size_text, warn
from nbqueue.client.calls import closures, modules, sources
from nbqueue.errors import BadInput, BadOption, NotPicklable, TooLarge
from nbqueue.model import MAX_FUNCTION, WARN_FUNCTION, FunctionRecord, Hook
from nbqueue.policies import Callback

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+\Z")


@dataclass(frozen=True)
class DescribedFunction:
    """A function and its record; `call` and `signature` are None if it cannot be imported here."""

    call: Callable[..., Any] | None
    label: str
    signature: inspect.Signature | None
    record: FunctionRecord


class _ByName:
    """Pickles as a dotted name: unpickling imports the function."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return pkgutil.resolve_name, (self._name,)


def describe(
    function: object,
    *,
    env: Sequence[str] = (),
    inherited: Mapping[str, str | None] | None = None,
    salt: bytes = b"",
    hooks: Mapping[str, Callback | Hook] | None = None,
    pin: bool | None = None,
) -> DescribedFunction:
    """`function` ready for sealing: a callable, or a dotted name such as `mylib.count`.

    `env` names environment variables to send along, besides `inherited`; `hooks` are callbacks. `salt` is mixed into
    the key, so that the key reveals nothing about their values. With `pin` the function runs only where the user's
    modules are as they are here now; without, with the worker's modules; None pins everything but dotted names. Raises
    BadInput, BadOption, NotPicklable or TooLarge.
    """
    if pin is None:
        pin = not isinstance(function, str)
    call, label, payload, own, reach = _wrapped(function, pin=pin)
    codes = list(reach.codes)
    made: dict[str, Hook] = {}
    for name, callback in (hooks or {}).items():
        if isinstance(callback, Hook):  # of an earlier submission
            made[name], reached = callback, _reached(None, None, callback.payload) if pin else {}
        else:
            _, title, pickled, reached, more = _wrapped(callback.func, pin=pin)
            made[name] = Hook(pickled, title, callback.timeout)
            codes += more.codes
        own |= reached
    record = record_of(payload, label, own, dict(inherited or {}) | _environment(env), made, salt, pinned=pin)
    # Not part of the key: they do not change how the function runs.
    imports = closures.importable(closures.imports_of(call, reach), own)
    record = msgspec.structs.replace(record, sources=sources.source_lines(codes), imports=imports)
    return DescribedFunction(call, label, signature_of(call), record)


def goes_by_name(function: object) -> bool:
    """Whether a worker imports the function by name, with nothing pickled by value."""
    return isinstance(function, str) or (callable(function) and not closures.CaptureWalk(function).whole)


def _wrapped(
    function: object, *, pin: bool
) -> tuple[Callable[..., Any] | None, str, bytes, dict[str, str], closures.CaptureWalk]:
    """(the callable if it is here, its name, its pickle, digests of the modules that it uses, the walk over it).

    Without `pin` no modules are read.
    """
    call, thing, label = resolved(function)
    reach = closures.CaptureWalk(call)
    payload = _pickled(thing, label, reach)
    return call, label, payload, _reached(function, reach, payload) if pin else {}, reach


def resolved(function: object) -> tuple[Callable[..., Any] | None, Any, str]:
    """(the callable if it is here, the object to pickle, its name). Raises BadInput, BadOption."""
    if isinstance(function, str):
        return _named(function)
    if callable(function):
        return function, function, label_of(function)
    raise BadOption(
        message=f"{brief(function)} cannot be called. Give a function, or its dotted name such as 'mylib.count'."
    )


def _named(name: str) -> tuple[Callable[..., Any] | None, Any, str]:
    if not _DOTTED.match(name):
        raise BadInput(message=f"{brief(name)} is not a dotted function name such as 'mylib.count'.")
    label = name.rpartition(".")[2]
    try:
        found = pkgutil.resolve_name(name)
    except ImportError as why:
        if not _missing_here(why, name):
            raise BadInput(message=f"Importing {name!r} failed here: {why}. Fix the module, then try again.") from why
        return None, _ByName(name), label  # the worker may have it
    except AttributeError as why:
        raise BadInput(message=f"There is no {name!r} ({why}). Check the spelling of the dotted name.") from why
    if not callable(found):
        raise BadInput(message=f"{name!r} is {brief(found)}, which cannot be called.")
    return found, _ByName(name), label


def _missing_here(why: ImportError, name: str) -> bool:
    """Whether the module itself is missing, and not a module that it imports."""
    missing = why.name or ""
    if isinstance(why, ModuleNotFoundError) and (name == missing or name.startswith(missing + ".")):
        parent = missing.rpartition(".")[0]
        return not parent or parent not in sys.modules
    return False


def _reached(function: object, reach: closures.CaptureWalk | None, payload: bytes) -> dict[str, str]:
    names = set(reach.modules) if reach is not None else set()
    if isinstance(function, str):
        names.add(function.rpartition(".")[0])
    if len(payload) < 1 << 20:
        # Modules of a function's data (instances in a list, say) are named in its pickle; a false match does no harm.
        names.update(name for name in modules.user_loaded() if name.encode() in payload)
    found = modules.digests(name for name in names if not wire.travels_whole(name))
    if old := modules.stale_modules(found):
        warn(
            f"{', '.join(old)}: the file changed after it was imported here. Workers run the new version, and this "
            "process still has the old one: call importlib.reload() on the module, or restart the kernel."
        )
    path = added_path()
    return found | modules.shadowed(names, path[: path.index("")] if "" in path else (*path, _here()))


def label_of(function: Any) -> str:
    """A function's name, for messages and for ids."""
    if isinstance(inner := getattr(function, "func", None), Callable):  # type: ignore[arg-type]
        return label_of(inner)  # a partial
    name = getattr(function, "__name__", None) or type(function).__name__
    return "lambda" if name == "<lambda>" else str(name)[:100]


def signature_of(function: Callable[..., Any] | None) -> inspect.Signature | None:
    """The signature; None for builtins without one, and for functions that are not here."""
    if function is None:
        return None
    # Cached: parsing a builtin's signature from its text takes as long as everything else together.
    if inspect.isbuiltin(function) and inspect.ismodule(function.__self__):
        return _builtins(function)
    return _signature(function)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None


_builtins = lru_cache(256)(_signature)


def _pickled(thing: Any, label: str, reach: closures.CaptureWalk) -> bytes:
    captured = reach.captured
    remedy = "Pass a path, or a slice as argument."
    try:
        payload = wire.by_value(thing, MAX_FUNCTION, f"The function {label}")
    except TooLarge as why:
        names = closures.largest(captured, WARN_FUNCTION // 10)
        shown = f"It captures {names}: p" if names else "P"
        raise TooLarge(**why.facts | {"remedy": shown + remedy[1:]}) from None
    except Exception as why:
        raise NotPicklable(
            what=f"The function {label}",
            why=f"{type(why).__name__}: {why}",
            remedy=_culprits(captured) + "Create such objects inside the function, or pass what they are made from.",
        ) from why
    if len(payload) > WARN_FUNCTION:
        names = closures.largest(captured, WARN_FUNCTION // 10) or "its data"
        size = size_text(len(payload))
        warn(f"The function {label} captures {size} ({names}): p{remedy[1:]}")
    return payload


def _culprits(captured: dict[str, Any]) -> str:
    stuck = [name for name, value in captured.items() if not _can_pickle(value)]
    return f"It captures {', '.join(sorted(stuck)[:5])}. " if stuck else ""


def _can_pickle(value: Any) -> bool:
    try:
        wire.measured(value)
    except Exception:  # noqa: BLE001 - any error means no
        return False
    return True


def _environment(names: Sequence[str]) -> dict[str, str | None]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise BadOption(message=f"env={list(names)!r}: {missing[0]} is not set in this process.")
    return {name: os.environ[name] for name in names}


def added_path() -> tuple[str, ...]:
    """The entries of sys.path that are not the interpreter's, as absolute folders; "" in place of the interpreter's."""
    return _added(tuple(sys.path), _here())


@lru_cache(maxsize=8)
def _added(given: tuple[str, ...], here: str) -> tuple[str, ...]:
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    own = modules.library_folders()
    entries = [str(Path(here, entry)) for entry in given]
    found = dict.fromkeys(
        "" if (os.path.realpath(entry) + os.sep).startswith(own) or entry.endswith(zipped) else entry
        for entry in entries
    )
    return tuple(found)


def _here() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "/"  # the folder was removed; jobs then start at the root


def record_of(
    payload: bytes,
    label: str,
    own: dict[str, str],
    env: dict[str, str | None],
    hooks: dict[str, Hook],
    salt: bytes,
    *,
    pinned: bool,
) -> FunctionRecord:
    """The record of a function; its key is a digest of all that a forkserver loads for it."""
    python = settings.python_version()
    path, cwd = added_path(), _here()
    parts: list[bytes | str] = [payload, python, cwd, sys.executable, *path, "modules", *_flat(own), "env", *_flat(env)]
    parts += [] if pinned else ["as it is"]
    for name in sorted(hooks):
        parts += ["hook", name, hooks[name].payload, str(hooks[name].timeout)]
    digest = hashlib.blake2b(digest_size=16, key=salt[:64])
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "big") + data)
    return FunctionRecord(
        payload=payload,
        key=digest.hexdigest(),
        label=label,
        python=python,
        interpreter=sys.executable,
        host=settings.host(),
        cwd=cwd,
        path=path,
        modules=own,
        pinned=pinned,
        env=env,
        hooks=hooks,
    )


def _flat(pairs: Mapping[str, str | None]) -> list[str]:
    """Names and values in a flat list; a name without a value gets an equals sign, which names cannot contain."""
    return [
        text for name, value in sorted(pairs.items()) for text in ((f"{name}=",) if value is None else (name, value))
    ]
