"""Loading one function: its place (folder, path, environment), its modules, itself."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.util
import linecache
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nbqueue import perform, wire
from nbqueue.checks import is_installed
from nbqueue.errors import CodeDiffers, LoadError
from nbqueue.model import Failure, FunctionRecord
from nbqueue.settings import cpus, host
from nbqueue.worker import frames, fresh, notebook, tree
from nbqueue.worker.channel import Channel, Frame
from nbqueue.worker.surroundings import for_jobs

GPU = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


def settle_in(record: FunctionRecord, paths: Sequence[str] = ()) -> None:
    """Makes this process the place that the function expects: folder, sys.path, environment, an empty `__main__`.

    `paths`, the worker's own, come first in sys.path. What is not pinned is looked for where the worker is, too, before
    it is where the client was: that may be the folder of a release before.
    """
    here = os.getcwd()  # noqa: PTH109 - a str for sys.path
    # Again, after the parent: a stable may be started by hand, and its children see what it was executed with.
    here_too = {name: value for name, value in os.environ.items() if record.env.get(name, value) is not None}
    kept = for_jobs(here_too, cpus()) | {name: value for name, value in record.env.items() if value is not None}
    for name in set(os.environ) - set(kept):
        del os.environ[name]
    os.environ.update(kept)
    if Path(record.cwd).is_dir() and os.access(record.cwd, os.X_OK):
        os.chdir(record.cwd)
    wanted = [path for path in (*record.path, record.cwd) if path and Path(path).exists()]
    if record.pinned:
        # In a notebook its folder stands behind the standard library, in a script before it.
        ahead = record.path[: record.path.index("")] if "" in record.path else wanted
        new = [path for path in dict.fromkeys(wanted) if path not in sys.path]
        place = next((place for place, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
        sys.path[place:place] = [path for path in new if path not in ahead]
        sys.path[:0] = [path for path in new if path in ahead]
    else:
        # Behind PYTHONPATH, before the standard library.
        place = next((place for place, path in enumerate(sys.path) if path.startswith(sys.base_prefix)), len(sys.path))
        sys.path[place:place] = [path for path in dict.fromkeys([here, *wanted]) if path not in (*sys.path, "/")]
    sys.path[:0] = [path for path in dict.fromkeys(paths) if path]
    notebook.settle_in()
    for name in ("resource", "signal"):  # they are there again once code of the user's imports them: see restore
        sys.modules.pop(name, None)


def load(record: FunctionRecord, preload: Sequence[str] = ()) -> Callable[..., Any]:
    """The function, with its modules verified and imported, and those that the worker names. Raises LoadError."""
    prepare(record, preload)
    know_lines(record.sources)
    try:
        function = wire.loads(record.payload)
    except ModuleNotFoundError as why:
        lacking = why.name is not None and any(f"{name}.".startswith(f"{why.name}.") for name in record.modules)
        raise _unfit(record, _told(why), CodeDiffers if lacking else LoadError) from why
    except BaseException as why:
        raise _unfit(record, _told(why)) from why
    if not callable(function):
        raise _unfit(record, f"it is no function but a {type(function).__name__}")
    found: Callable[..., Any] = function
    return found


def import_ahead(names: Iterable[str]) -> list[str]:
    """Imports what calls will want, once rather than in each process; returns what could not be imported.

    That is no error here: the call that needs it meets it, and tells.
    """
    failed = []
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit):  # noqa: BLE001 - a module may raise anything
            failed.append(name)
    if "numpy" in sys.modules:  # it imports this when it is first asked for it, and each job is seeded
        importlib.import_module("numpy.random")
    return failed


def repeatable(names: Iterable[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """Of modules that a call has imported, those that may be imported ahead of others, and those that may not.

    They may if they are of the standard library or installed, or among the function's `own`: others can be edited.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for name in names:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if spec is None or (spec.origin is None and spec.loader is None):
            continue  # made by a program, or a folder that is there with the first module in it
        top = name.partition(".")[0]
        may = top in sys.stdlib_module_names or top == "nbqueue" or name in own or is_installed(str(spec.origin))
        found[0 if may else 1].append(name)
    return found


_known: set[str] = set()  # modules that loaded_files has looked at
_own: set[str] = set()  # those of them that are the user's own


def own_modules(record: FunctionRecord) -> Collection[str]:
    """The names of the user's own modules that the function may reach, as far as they are known."""
    return record.modules if record.pinned else _own


def loaded_files(function: Callable[..., Any], began: float) -> list[frames.File]:
    """The files of the user's own modules, and of the function's package, that were imported since it was last asked.

    `began`, on the wall clock, is before any of them was read.
    """
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    new = [name for name in list(sys.modules) if name not in _known]
    _known.update(new)
    found = []
    for name in new:
        path, top = getattr(sys.modules.get(name), "__file__", None), name.partition(".")[0]
        if not isinstance(path, str) or top in sys.stdlib_module_names or top in {"nbqueue", "__main__"}:
            continue
        if not is_installed(path):
            _own.add(name)
        with contextlib.suppress(OSError):
            facts = Path(path).stat() if top == package or not is_installed(path) else None
            if facts is not None:
                # One that was written while we loaded may have been read before.
                torn = began <= facts.st_ctime <= time.time()
                found.append(frames.File(path, 0 if torn else facts.st_mtime_ns, facts.st_size))
    return found


def copies(record: FunctionRecord, function: Callable[..., Any], *, alone: bool = True) -> fresh.Copies:
    """What the calls of a process are made with: `function`, as load gave it, and others of its kind.

    `alone` is for a process that makes nothing but these calls, and that may end where a copy is dear.
    """
    found = fresh.Copies(functools.partial(wire.loads, record.payload), function, alone=alone)
    if alone:
        found.weigh(len(record.payload))
    return found


_lines: dict[str, list[str]] = {}  # file name -> the lines that came with functions; the others are empty


def know_lines(sources: Mapping[str, Sequence[tuple[int, str]]]) -> None:
    """Makes tracebacks show these lines, unless this process knows the file itself."""
    for name, blocks in sources.items():
        if name not in _lines and name in linecache.cache:
            continue
        kept = _lines.setdefault(name, [])
        for first, text in blocks:
            lines = [line + "\n" for line in text.removesuffix("\n").split("\n")]
            kept += ["\n"] * (first - 1 + len(lines) - len(kept))
            kept[first - 1 : first - 1 + len(lines)] = lines
        linecache.cache[name] = sum(map(len, kept)), None, kept, name  # without a time it is never looked for on disk


def prepare(record: FunctionRecord, preload: Sequence[str] = ()) -> None:
    """Verifies the function's modules, and imports those that the worker names. Raises LoadError."""
    try:
        differs = next(filter(None, (_differs(name, digest) for name, digest in sorted(record.modules.items()))), "")
    except BaseException as why:
        raise _unfit(record, _told(why)) from why
    if differs:
        raise _unfit(record, differs, CodeDiffers)
    for name in preload:
        try:
            importlib.import_module(name)
        except BaseException as why:
            text = f"the worker was told to preload the module {name!r}, which failed ({_told(why)})"
            raise _unfit(record, text) from why


def _told(why: BaseException) -> str:
    return f"{perform.type_name(type(why))}: {perform.text_of(why)}"


def _unfit(record: FunctionRecord, why: str, kind: type[LoadError] = LoadError) -> LoadError:
    return kind(label=record.label, host=host(), why=why)


def _differs(name: str, digest: str) -> str:
    """What is wrong with a module of a function that is pinned; empty if it is the one that was submitted."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None  # its package is not there
    if found is None:
        return ""  # where it is needed the import will fail, and say so; a late import may never come
    import hashlib

    origin = Path(found.origin) if found.has_location and found.origin else None
    here = hashlib.sha256(origin.read_bytes()).hexdigest() if origin is not None else None
    where = f" ({origin})" if origin is not None else ""
    if here != digest and name in sys.stdlib_module_names:
        raise ImportError(
            f"the module {name!r} here{where} is not the one of the notebook or script: one is Python's own, the other "
            "a file of yours. Give yours another name."
        )
    if here != digest:
        return f"the module {name!r} here{where} is not the one that the function was submitted with."
    return ""


def failure_of(why: LoadError) -> Failure:
    """What UNFIT says; the traceback is that of the exception behind it."""
    failure = perform.failure_of(why)
    cause = why.__cause__
    told = "" if cause is None else perform.traceback_of(cause)
    return Failure(failure.type, failure.message, told, failure.pickled)


def start_over(channel: Channel, again: list[Frame], cwd: str, environ: dict[str, str]) -> NoReturn:
    """Becomes a stable that has loaded nothing, because one with threads or a GPU context must not be forked.

    Every horse then loads the function itself. What the parent has sent by now goes along, `again`, in a file.
    """
    import tempfile

    with tempfile.TemporaryFile(buffering=0) as file:
        for kind, each, _ in again:
            file.write(frames.HEAD.pack(len(each), kind) + each)
        file.write(channel.unread)
        file.seek(0)
        for fd in (channel.fileno(), file.fileno()):
            os.set_inheritable(fd, True)
        for pid in tree.children():
            tree.kill_group(pid)
        os.chdir(cwd)
        safe = ["-P"] if sys.flags.safe_path else []
        command = [sys.executable, *safe, "-m", "nbqueue.worker.stable", str(channel.fileno()), str(file.fileno())]
        os.execve(sys.executable, command, environ)  # noqa: S606 - the same program again


def must_fork_bare() -> str:
    """Why a process that has loaded the function cannot be forked; empty if it can."""
    if (count := threading.active_count()) > 1:
        return f"{count - 1} threads"
    gpu = next((path for path in _opened() if path.startswith(GPU)), "")
    return f"an open {gpu}" if gpu else ""


def _opened() -> Iterator[str]:
    """The files and devices that this process has open; none where there is no /proc."""
    with contextlib.suppress(FileNotFoundError):
        for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                yield os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115


def freeze_memory() -> None:
    """Moves all that is loaded out of the collector's sight, so that forks share its pages."""
    gc.collect()
    gc.freeze()
