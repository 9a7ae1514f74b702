"""What a call may have changed in its process, put back before the next call of the same horse.

All of it is compared first, or costs one system call: a few microseconds in all.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` wraps answers in enums, a microsecond each
import _thread
import os
import random
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGQUIT")
)

_ITIMER, _SETMASK = int(signal.ITIMER_REAL), int(signal.SIG_SETMASK)


class Scene:
    """The state of the process before its first call."""

    def __init__(self, output: int, alarm: int) -> None:
        self._output = output
        self._cwd = os.getcwd()  # noqa: PTH109 - a str to compare with
        self._environ: dict[Any, Any] = dict(_environ())
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = [(int(signum), _signal.getsignal(signum)) for signum in (*_SIGNALS, alarm)]
        self._blocked = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._streams = sys.stdout, sys.stderr
        self._threads = _thread._count()  # noqa: SLF001 - counts raw threads too
        self._path = list(sys.path)

    def restore(self) -> bool:
        """Puts everything back; False when that cannot be done, so that this process must not go on."""
        try:
            self._restore()
        except (OSError, ValueError):
            return False
        return not self._crowded()

    def _restore(self) -> None:
        for fd in (1, 2):
            os.dup2(self._output, fd)
        sys.stdout, sys.stderr = self._streams
        if _cwd() != self._cwd:
            os.chdir(self._cwd)
        if _environ() != self._environ:
            os.environ.clear()
            os.environ.update({os.fsdecode(key): os.fsdecode(value) for key, value in self._environ.items()})
        os.umask(self._umask)
        _signal.setitimer(_ITIMER, 0)
        _signal.pthread_sigmask(_SETMASK, self._blocked)
        for signum, handler in self._handlers:
            if _signal.getsignal(signum) is not handler and handler is not None:
                _signal.signal(signum, handler)
        if sys.path != self._path:
            sys.path[:] = self._path

    def _crowded(self) -> bool:
        """Whether the call left threads or children behind."""
        if _thread._count() > self._threads:  # noqa: SLF001 - as above
            return True
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True


def _environ() -> Any:
    # The encoded form: comparing os.environ itself would decode every name and value.
    return getattr(os.environ, "_data", None) or {os.fsencode(k): os.fsencode(v) for k, v in os.environ.items()}


def _cwd() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a str to compare with
    except FileNotFoundError:
        return ""  # the call removed its folder


def sow(seed: int, index: int) -> None:
    """Seeds `random` and NumPy's global state for one job; the latter, where NumPy is not imported yet, once it is."""
    key = (seed << 64) + index + 1
    random.seed(key)
    words = [1]  # the same algorithm as in `random`: with the same key it would draw the same numbers
    while key:
        words.append(key & 0xFFFFFFFF)
        key >>= 32
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed(words)
        return
    _late.words = words
    if _late not in sys.meta_path:
        sys.meta_path.insert(0, _late)


def forget() -> None:
    """A later import of NumPy finds nothing to do here."""
    if _late in sys.meta_path:
        sys.meta_path.remove(_late)


class _Late:  # no subclass of importlib.abc, which takes 20 ms to import
    """Seeds `numpy.random` when it is first imported: the job does that itself, or NumPy when it is first asked."""

    words: Sequence[int] = ()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """The module's own spec, with a loader that seeds it."""
        del target
        if fullname != "numpy.random":
            return None
        forget()
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_seed(module: Any) -> None:
                execute(module)
                module.seed(self.words)

            spec.loader.exec_module = execute_and_seed  # type: ignore[method-assign]
        return spec


_late = _Late()
