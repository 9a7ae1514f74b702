"""What a call may have changed in its process, put back before the next call of the same child.

Each row of the table reads one thing that belongs to the process. What differs after a call is put back; where that
does not help, where nothing can put it back, or where the call has imported a module in between (which may have changed
it for good reason, or have read it while it was changed), the child ends, and the next call gets a fresh one. All of it
is compared first, or costs one system call: about 20 microseconds in all, and 10 more with pandas.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]  # `signal` wraps answers in enums, a microsecond each
import _thread
import faulthandler
import operator
import os
import random
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, NamedTuple

from nbqueue.worker.fresh import Names

_SIGNALS = tuple(
    int(getattr(signal, name))
    for name in (
        *("SIGTERM", "SIGINT", "SIGHUP", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2", "SIGCHLD"),
        *("SIGPIPE", "SIGQUIT", "SIGXCPU"),
    )
)
_TIMERS = tuple(int(each) for each in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF))
_SETMASK = int(signal.SIG_SETMASK)
_LIMITS = tuple(
    getattr(resource, name)
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_STACK")
)
_SMALL = 1_000  # entries of a container that are looked at one by one


class Row(NamedTuple):
    """One thing of a process: the module that must be there for it, how it is read, and how it is put back, if at all.

    `read` is given the module, and `write` what `read` gave before the call.
    """

    module: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object] | None = None


# ---------------------------------------------------------------- the interpreter


def _interpreter(m: Any) -> Any:
    return (
        m.getrecursionlimit(),
        m.getswitchinterval(),
        m.get_int_max_str_digits(),
        m.gettrace(),
        m.getprofile(),
        m.get_asyncgen_hooks(),
        m.get_coroutine_origin_tracking_depth(),
        m.dont_write_bytecode,
        m.excepthook,
        m.displayhook,
        m.unraisablehook,
        m.breakpointhook,
        m.stdin,
        m.stdin is not None and m.stdin.closed,
        [*m.argv],
        [*m.path],
    )


def _set_interpreter(m: Any, was: Any) -> None:
    m.setrecursionlimit(was[0])
    m.setswitchinterval(was[1])
    m.set_int_max_str_digits(was[2])
    m.settrace(was[3])
    m.setprofile(was[4])
    m.set_asyncgen_hooks(*was[5])
    m.set_coroutine_origin_tracking_depth(was[6])
    m.dont_write_bytecode, m.excepthook, m.displayhook, m.unraisablehook, m.breakpointhook, m.stdin = was[7:13]
    m.argv, m.path[:] = [*was[14]], was[15]


def _importing(m: Any) -> Any:
    return [finder for finder in m.meta_path if finder is not _late], [*m.path_hooks]


def _monitoring(m: Any) -> Any:
    return [m.monitoring.get_tool(number) for number in range(6)]


def _set_builtins(m: Any, was: Any) -> None:
    for name in [name for name in vars(m) if name not in was]:
        delattr(m, name)
    vars(m).update(was)


def _collector(m: Any) -> Any:
    return m.isenabled(), m.get_threshold(), m.get_debug(), [*m.callbacks]


def _set_collector(m: Any, was: Any) -> None:
    (m.enable if was[0] else m.disable)()
    m.set_threshold(*was[1])
    m.set_debug(was[2])
    m.callbacks[:] = was[3]


def _warnings(m: Any) -> Any:
    return [*m.filters], m.showwarning, m.formatwarning, len(m.onceregistry)


def _set_warnings(m: Any, was: Any) -> None:
    if (logging := sys.modules.get("logging")) is not None and m.showwarning is not was[1]:
        logging.captureWarnings(capture=False)
    m.resetwarnings()  # it makes the interpreter look at the filters anew
    m.filters[:], m.showwarning, m.formatwarning = was[:3]
    m.onceregistry.clear()


def _threading(m: Any) -> Any:
    return m.excepthook, m.gettrace(), m.getprofile(), m.stack_size()


def _set_threading(m: Any, was: Any) -> None:
    m.excepthook = was[0]
    m.settrace(was[1])
    m.setprofile(was[2])
    m.stack_size(was[3])


# ---------------------------------------------------------------- the system


def _environ(_: Any = None) -> Any:
    # The encoded form: os.environ itself would decode every name and value.
    data = getattr(os.environ, "_data", None)
    return {os.fsencode(k): os.fsencode(v) for k, v in os.environ.items()} if data is None else data


def _set_environ(_: Any, was: Any) -> None:
    zone = os.environ.get("TZ")
    os.environ.clear()
    os.environ.update({os.fsdecode(key): os.fsdecode(value) for key, value in was.items()})
    if zone != os.environ.get("TZ"):
        time.tzset()


def _cwd(_: Any) -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a str to compare with
    except FileNotFoundError:
        return ""  # the call removed its folder


def _handlers(_: Any) -> Any:
    return [_signal.getsignal(signum) for signum in _SIGNALS]


def _set_handlers(_: Any, was: Any) -> None:
    for signum, handler in zip(_SIGNALS, was, strict=True):
        if _signal.getsignal(signum) is not handler and handler is not None:
            _signal.signal(signum, handler)


def _priority(m: Any) -> Any:
    return m.getpriority(os.PRIO_PROCESS, 0), m.sched_getaffinity(0) if hasattr(m, "sched_getaffinity") else None


def _set_priority(m: Any, was: Any) -> None:
    m.setpriority(os.PRIO_PROCESS, 0, was[0])
    if was[1] is not None:
        m.sched_setaffinity(0, was[1])


def _limits(m: Any) -> Any:
    return [*map(m.getrlimit, _LIMITS)]


def _set_limits(m: Any, was: Any) -> None:
    for limit, pair in zip(_LIMITS, was, strict=True):
        m.setrlimit(limit, pair)


# ---------------------------------------------------------------- libraries

_CONTEXT = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
_FIELDS = operator.attrgetter(*_CONTEXT)


def _decimal(m: Any) -> Any:
    # The template of contexts; the context of a call is its own, as perform makes it.
    return _FIELDS(m.DefaultContext)


def _set_decimal(m: Any, was: Any) -> None:
    for name, value in zip(_CONTEXT, was, strict=True):
        setattr(m.DefaultContext, name, value)


_SILENT: Any = (0, True, False, [], [])


def _loggers(m: Any) -> Any:
    found: dict[str, Any] = {
        name: (log.level, log.propagate, log.disabled, [*log.handlers], [*log.filters])
        for name, log in m.root.manager.loggerDict.items()
        if not isinstance(log, m.PlaceHolder)
        and (log.level or log.handlers or log.disabled or log.filters or not log.propagate)
    }
    root = m.root
    return root.manager.disable, (root.level, root.propagate, root.disabled, [*root.handlers], [*root.filters]), found


def _set_loggers(m: Any, was: Any) -> None:
    disable, root, loggers = was
    m.disable(disable)
    _set_logger(m.root, root)
    for name in _loggers(m)[2] | loggers:
        _set_logger(m.getLogger(name), loggers.get(name, _SILENT))


def _set_logger(log: Any, was: Any) -> None:
    log.setLevel(was[0])
    log.propagate, log.disabled, log.handlers[:], log.filters[:] = was[1:]


def _set_start_method(m: Any, was: Any) -> None:
    m.set_start_method(was, force=True)


def _numpy(m: Any) -> Any:
    return m.geterr(), m.geterrcall(), m.get_printoptions()


def _set_numpy(m: Any, was: Any) -> None:
    m.seterr(**was[0])
    m.seterrcall(was[1])
    m.set_printoptions(**was[2])


def _pandas(m: Any) -> Any:
    return getattr(m.options, "d", {})


def _flat(options: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if type(value) is dict:
            yield from _flat(value, f"{place}{name}.")
        else:
            yield place + name, value


def _set_pandas(m: Any, was: Any) -> None:
    before = dict(_flat(was))
    for name, value in [*_flat(_pandas(m))]:
        if value is not before[name]:
            m.set_option(name, before[name])


def _matplotlib(m: Any) -> Any:
    # The dict's own methods: those of RcParams sort the names and look at each.
    names, values = [*dict.keys(m.rcParams)], [*dict.values(m.rcParams)]
    place = names.index("backend")  # which one is found out when the first figure is made
    del names[place], values[place]
    return names, values


def _set_matplotlib(m: Any, was: Any) -> None:
    dict.update(m.rcParams, zip(*was, strict=True))


_ROWS = (
    Row("sys", _interpreter, _set_interpreter),
    Row("sys", _importing),
    *([Row("sys", _monitoring)] if hasattr(sys, "monitoring") else ()),
    Row("builtins", vars, _set_builtins),
    Row("gc", _collector, _set_collector),
    Row("os", _cwd, lambda m, was: m.chdir(was)),
    Row("os", _environ, _set_environ),
    Row("os", _priority, _set_priority),
    Row("resource", _limits, _set_limits),
    Row("signal", _handlers, _set_handlers),
    Row("time", lambda m: (m.tzname, m.timezone, m.altzone, m.daylight), lambda m, _: m.tzset()),
    Row("_locale", lambda m: m.setlocale(_locale.LC_ALL, None), lambda m, was: m.setlocale(_locale.LC_ALL, was)),
    Row("warnings", _warnings, _set_warnings),
    Row("threading", _threading, _set_threading),
    Row("_socket", lambda m: m.getdefaulttimeout(), lambda m, was: m.setdefaulttimeout(was)),
    Row("_csv", lambda m: m.field_size_limit(), lambda m, was: m.field_size_limit(was)),
    Row("decimal", _decimal, _set_decimal),
    Row("logging", _loggers, _set_loggers),
    Row("multiprocessing", lambda m: m.get_start_method(allow_none=True), _set_start_method),
    Row("numpy", _numpy, _set_numpy),
    Row("pandas", _pandas, _set_pandas),
    Row("matplotlib", _matplotlib, _set_matplotlib),
    Row("matplotlib.pyplot", lambda m: m.get_fignums(), lambda m, _: m.close("all")),
)


# ---------------------------------------------------------------- all of it


class Own:
    """One of the user's own modules: its names, the containers that they are bound to, and its random generators."""

    def __init__(self, module: Any) -> None:
        self._names = Names(vars(module))
        self._inside = [(each, _shallow(each)) for each in vars(module).values() if isinstance(each, _CONTAINERS)]
        self._states = [(each, _drawn(each)) for each in vars(module).values() if _drawn(each) is not None]

    def same(self) -> bool:
        """Whether a call has changed nothing of that."""
        return (
            self._names.same()
            and all(_alike(_shallow(each), was) for each, was in self._inside)
            and all(_drawn(each) == was for each, was in self._states)
        )


_CONTAINERS = (list, dict, set, deque, bytearray)


def _shallow(container: Any) -> Any:
    """The size and, if there are few, the things in a container."""
    if len(container) > _SMALL:
        return len(container), ()
    values = container.values() if isinstance(container, dict) else container
    return len(container), [*values, *container] if values is not container else [*values]


def _alike(now: Any, was: Any) -> bool:
    return now[0] == was[0] and all(map(operator.is_, now[1], was[1]))


def _drawn(thing: Any) -> Any:
    """The state of a random generator, to be compared; None for all else, and for one that has none."""
    if isinstance(thing, random.Random):
        try:
            return thing.getstate()
        except NotImplementedError:
            return None  # SystemRandom
    numpy = sys.modules.get("numpy.random")
    if numpy is not None and isinstance(thing, numpy.Generator):
        return _plain(thing.bit_generator.state)
    return _plain(thing.get_state(legacy=False)) if numpy is not None and isinstance(thing, numpy.RandomState) else None


def _plain(state: Any) -> Any:
    """A state of NumPy's with bytes in the place of arrays, which do not compare to True or False."""
    if isinstance(state, dict):
        return {name: _plain(each) for name, each in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state


def _kept(value: Any) -> Any:
    """What a row has read, as it stays: a dict that is read may be the process's own, and so may those in it."""
    return {name: _kept(each) for name, each in value.items()} if type(value) is dict else value


class Scene:
    """The state of the process before its first call."""

    def __init__(self, output: int, alarm: int, own: Iterable[str] = ()) -> None:
        """`output` is the pipe of its output, `alarm` a signal of ours, `own` the user's own modules."""
        self._output = output
        self._streams = sys.stdout, sys.stderr
        self._threads = _thread._count()  # noqa: SLF001 - counts raw threads too
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._alarm = alarm, _signal.getsignal(alarm)
        self._blocked = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._modules = [*sys.modules.values()]
        self._own = {name: Own(sys.modules[name]) for name in own if name in sys.modules}
        there = {row.module: sys.modules[row.module] for row in _ROWS if row.module in sys.modules}
        self._rows = [(row.read, row.write, m, _kept(row.read(m))) for row in _ROWS if (m := there.get(row.module))]
        # Of what is not there yet nobody knows how it is before a call has used it.
        self._absent = ({row.module for row in _ROWS} - set(there)) | (set(own) - set(self._own))

    def restore(self) -> bool:
        """Puts everything back; False when that cannot be done, so that this process must not go on."""
        try:
            return self._put_back() and not self._crowded()
        except Exception:  # noqa: BLE001 - putting back, or what a call has left there, may raise anything
            return False

    def _put_back(self) -> bool:
        for fd in (1, 2):
            os.dup2(self._output, fd)
        sys.stdout, sys.stderr = self._streams
        os.umask(self._umask)
        for timer in _TIMERS:
            _signal.setitimer(timer, 0)
        _signal.pthread_sigmask(_SETMASK, self._blocked)
        if _signal.getsignal(self._alarm[0]) is not self._alarm[1]:
            _signal.signal(*self._alarm)
        faulthandler.cancel_dump_traceback_later()
        modules = [*sys.modules.values()]
        imported = modules != self._modules
        if imported and not self._only_imported(modules):
            return False
        for read, write, module, was in self._rows:
            if read(module) != was:
                if imported or write is None:
                    return False
                write(module, was)
                if read(module) != was:
                    return False
        return all(map(Own.same, self._own.values())) and not any(stream.closed for stream in self._streams)

    def _only_imported(self, modules: list[Any]) -> bool:
        """Whether what is new in sys.modules has been imported, nothing else has changed there, and no row is of it."""
        before, self._modules = self._modules, modules
        fresh = modules[len(before) :]
        return (
            modules[: len(before)] == before
            and all(getattr(module, "__spec__", None) is not None for module in fresh)
            and self._absent.isdisjoint(sys.modules)
        )

    def _crowded(self) -> bool:
        """Whether the call left threads or children behind."""
        if _thread._count() > self._threads:  # noqa: SLF001 - as above
            return True
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True


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
