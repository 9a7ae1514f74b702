"""What a call may have changed in its process, put back before the next call of the same child.

Each row of the table reads things that belong to the process. What differs after a call is put back; where that does
not help, where nothing can put it back, or where the call has imported a module in between (which may have changed it
for good reason, or have read it while it was changed), the child ends, and the next call gets a fresh one. All of it is
compared first, or costs one system call.

This is done after every call, so that what is always there is read by few functions in a row, without steps of Python
code in between; and what only a module gives access to is not read where nobody has imported that module.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]  # `signal` wraps answers in enums, a microsecond each
import _socket
import _thread
import decimal
import faulthandler
import gc
import logging
import operator
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, NamedTuple

from nbqueue.worker import tree
from nbqueue.worker.fresh import Names
from nbqueue.worker.limits import ALARM

_SIGNALS = (
    *(_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGALRM, _signal.SIGVTALRM, _signal.SIGPROF),
    *(_signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGQUIT, _signal.SIGXCPU, ALARM),
)
_TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
_LIMITS = tuple(
    getattr(resource, name)
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_STACK")
)
_SMALL = 1_000  # entries of a container that are looked at one by one

Read = Callable[[], Any]
Write = Callable[[Any], object]


class Row(NamedTuple):
    """Things of a process: the module that it takes to change them, and how they are read, and put back, if at all.

    `made` is given the module. What `read` gives is compared after every call with what it gave first, which is what
    `write` is given.
    """

    module: str
    made: Callable[[Any], tuple[Read, Write | None]]


# ---------------------------------------------------------------- the interpreter


def _interpreter(_: Any) -> tuple[Read, Write]:
    streams = [stream for stream in (sys.stdin, sys.stdout, sys.stderr) if stream is not None]
    closed = operator.attrgetter("closed")
    tool: Any = getattr(getattr(sys, "monitoring", None), "get_tool", None)  # since Python 3.12
    tools = range(6 if tool else 0)

    def read() -> Any:
        return (
            sys.getrecursionlimit(),
            sys.getswitchinterval(),
            sys.get_int_max_str_digits(),
            sys.gettrace(),
            sys.getprofile(),
            sys.get_asyncgen_hooks(),
            sys.get_coroutine_origin_tracking_depth(),
            gc.isenabled(),
            gc.get_threshold(),
            gc.get_debug(),
            gc.callbacks,
            sys.path,
            sys.argv,
            sys.stdin,
            sys.dont_write_bytecode,
            sys.excepthook,
            sys.displayhook,
            sys.unraisablehook,
            sys.breakpointhook,
            sys.meta_path,
            sys.path_hooks,
            [*map(closed, streams)],
            [*map(tool, tools)],
        )

    def write(was: Any) -> None:
        sys.setrecursionlimit(was[0])
        sys.setswitchinterval(was[1])
        sys.set_int_max_str_digits(was[2])
        sys.settrace(was[3])
        sys.setprofile(was[4])
        sys.set_asyncgen_hooks(*was[5])
        sys.set_coroutine_origin_tracking_depth(was[6])
        (gc.enable if was[7] else gc.disable)()
        gc.set_threshold(*was[8])
        gc.set_debug(was[9])
        gc.callbacks[:], sys.path[:], sys.argv, sys.stdin = was[10], was[11], [*was[12]], was[13]
        sys.dont_write_bytecode, sys.excepthook, sys.displayhook, sys.unraisablehook, sys.breakpointhook = was[14:19]
        # Nothing puts back the rest.

    return read, write


def _builtins(m: Any) -> tuple[Read, Write]:
    names = vars(m)
    before = dict(names)

    def read() -> Any:
        # A third of what comparing the dict takes. A name that comes in the place of another one is the last.
        return [*names.values()], next(reversed(names))

    def write(_: Any) -> None:
        for name in names.keys() - before.keys():
            del names[name]
        names.update(before)

    return read, write


def _library(warnings: Any) -> tuple[Read, Write]:
    """What those modules of Python hold that are always there."""
    context = decimal.DefaultContext  # the template of contexts; that of a call is its own, as perform makes it

    def read() -> Any:
        return (
            (context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp),
            _socket.getdefaulttimeout(),
            threading.excepthook,
            threading.gettrace(),
            threading.getprofile(),
            threading.stack_size(),
            warnings.filters,
            warnings.showwarning,
            warnings.formatwarning,
            warnings.onceregistry,
            (time.tzname, time.timezone, time.altzone, time.daylight),
        )

    def write(was: Any) -> None:
        (context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp) = was[0]
        _socket.setdefaulttimeout(was[1])
        threading.excepthook = was[2]
        threading.settrace(was[3])
        threading.setprofile(was[4])
        threading.stack_size(was[5])
        if warnings.showwarning is not was[7]:
            logging.captureWarnings(capture=False)
        warnings.resetwarnings()  # it makes the interpreter look at the filters anew
        warnings.filters[:], warnings.showwarning, warnings.formatwarning = was[6:9]
        warnings.onceregistry.clear()
        warnings.onceregistry.update(was[9])
        time.tzset()

    return read, write


def _loggers(m: Any) -> tuple[Read, Write]:
    root, manager, silent = m.root, m.root.manager, (0, True, False, (), ())

    def state(log: Any) -> Any:
        return log.level, log.propagate, log.disabled, [*log.handlers], [*log.filters]

    def read() -> Any:
        found: dict[str, Any] = {
            name: state(log)
            for name, log in manager.loggerDict.items()
            if not isinstance(log, m.PlaceHolder)
            and (log.level or log.handlers or log.disabled or log.filters or not log.propagate)
        }
        return manager.disable, root.level, root.propagate, root.disabled, root.handlers, root.filters, found

    def write(was: Any) -> None:
        m.disable(was[0])
        put_back(root, was[1:6])
        for name in read()[6] | was[6]:
            put_back(m.getLogger(name), was[6].get(name, silent))

    def put_back(log: Any, was: Any) -> None:
        log.setLevel(was[0])
        log.propagate, log.disabled, log.handlers[:], log.filters[:] = was[1:]

    return read, write


# ---------------------------------------------------------------- the system


def _system(_: Any) -> tuple[Read, Write]:
    affinity = getattr(os, "sched_getaffinity", lambda _: None)

    def read() -> Any:
        try:
            folder = os.getcwd()  # noqa: PTH109 - a str to compare with
        except FileNotFoundError:
            folder = ""  # the call removed it
        return folder, os.getpriority(os.PRIO_PROCESS, 0), affinity(0), environ()

    def environ() -> Any:
        # The encoded form: os.environ itself would decode every name and value.
        data = getattr(os.environ, "_data", None)
        return {os.fsencode(k): os.fsencode(v) for k, v in os.environ.items()} if data is None else data

    def write(was: Any) -> None:
        os.chdir(was[0])
        os.setpriority(os.PRIO_PROCESS, 0, was[1])
        if was[2] is not None:
            os.sched_setaffinity(0, was[2])
        zone = os.environ.get("TZ")
        os.environ.clear()
        os.environ.update({os.fsdecode(key): os.fsdecode(value) for key, value in was[3].items()})
        if zone != os.environ.get("TZ"):
            time.tzset()

    return read, write


def _signals(_: Any) -> tuple[Read, Write]:
    def read() -> Any:
        handlers = [*map(_signal.getsignal, _SIGNALS)]
        return handlers, _signal.pthread_sigmask(_signal.SIG_BLOCK, ()), [*map(_signal.getitimer, _TIMERS)]

    def write(was: Any) -> None:
        for timer in _TIMERS:
            _signal.setitimer(timer, 0)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, was[1])
        for signum, handler in zip(_SIGNALS, was[0], strict=True):
            if _signal.getsignal(signum) is not handler and handler is not None:
                _signal.signal(signum, handler)

    return read, write


def _limits(_: Any) -> tuple[Read, Write]:
    def write(was: Any) -> None:
        for limit, pair in zip(_LIMITS, was, strict=True):
            resource.setrlimit(limit, pair)

    return lambda: [*map(resource.getrlimit, _LIMITS)], write


def _language(_: Any) -> tuple[Read, Write]:
    def write(was: Any) -> None:
        _locale.setlocale(_locale.LC_ALL, was)

    return lambda: _locale.setlocale(_locale.LC_ALL), write


# ---------------------------------------------------------------- libraries


def _start_method(m: Any) -> tuple[Read, Write]:
    return lambda: m.get_start_method(allow_none=True), lambda was: m.set_start_method(was, force=True)


def _numpy(m: Any) -> tuple[Read, Write]:
    def read() -> Any:
        return m.geterr(), m.geterrcall(), m.get_printoptions()

    def write(was: Any) -> None:
        m.seterr(**was[0])
        m.seterrcall(was[1])
        m.set_printoptions(**was[2])

    if tuple(map(int, m.__version__.split(".")[:2])) < (2, 2):
        return read, write
    return lambda: None, write  # they are context variables, and end with the context of a call


def _pandas(m: Any) -> tuple[Read, Write]:
    def write(was: Any) -> None:
        before = dict(_flat(was))
        for name, value in [*_flat(m.options.d)]:
            if value is not before[name]:
                m.set_option(name, before[name])

    return lambda: m.options.d, write


def _flat(options: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if type(value) is dict:
            yield from _flat(value, f"{place}{name}.")
        else:
            yield place + name, value


def _matplotlib(m: Any) -> tuple[Read, Write]:
    # The dict's own methods: those of RcParams sort the names and look at each.
    before = dict(dict.items(m.rcParams))
    place = [*before].index("backend")
    del before["backend"]  # which one is found out when the first figure is made

    def read() -> Any:
        values = [*dict.values(m.rcParams)]
        values[place] = None
        return values

    return read, lambda _: dict.update(m.rcParams, before)


_ROWS = (
    Row("os", _system),  # before what follows from it, as the time zone
    Row("sys", _interpreter),
    Row("builtins", _builtins),
    Row("warnings", _library),
    Row("logging", _loggers),
    # Python code needs these modules, and has no others. (With ctypes it gets at all that is read nowhere here, too.)
    Row("signal", _signals),
    Row("resource", _limits),
    Row("locale", _language),
    Row("_csv", lambda m: (m.field_size_limit, m.field_size_limit)),
    Row("multiprocessing", _start_method),
    Row("numpy", _numpy),
    Row("pandas", _pandas),
    Row("matplotlib", _matplotlib),
    Row("matplotlib.pyplot", lambda m: (m.get_fignums, lambda _: m.close("all"))),
)


# ---------------------------------------------------------------- all of it


class Own:
    """One of the user's own modules: its names, the containers that they are bound to, and its random generators."""

    def __init__(self, module: Any) -> None:
        self._names = Names([vars(module)])
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
    if (random := sys.modules.get("random")) is not None and isinstance(thing, random.Random):
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
    """What was read, as it stays: what is in it may be the process's own."""
    if type(value) is dict:
        return {name: _kept(each) for name, each in value.items()}
    if type(value) is tuple:
        return tuple(map(_kept, value))
    return [*value] if type(value) is list else value


class Scene:
    """The state of the process before its first call."""

    def __init__(self, output: int, own: Iterable[str] = ()) -> None:
        """`output` is the pipe of its output, `own` the user's own modules."""
        self._output = output
        self._streams = sys.stdout, sys.stderr
        self._threads, self._childless = _thread._count(), tree.childless()  # noqa: SLF001
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        _late.expect({})  # so that the finders of modules are the same after a call with a seed
        self._modules = [*sys.modules.values()]
        self._own = {name: Own(sys.modules[name]) for name in own if name in sys.modules}
        made = [row.made(m) for row in _ROWS if (m := sys.modules.get(row.module)) is not None]
        self._rows = [(read, write, _kept(read())) for read, write in made]
        # Of what is not there yet nobody knows how it is before a call has used it.
        self._absent = ({row.module for row in _ROWS} | set(own)) - set(sys.modules)

    def restore(self) -> bool:
        """Puts everything back; False when that cannot be done, so that this process must not go on."""
        try:
            # Also that the call left neither threads, raw ones included, nor children.
            return self._put_back() and _thread._count() <= self._threads and self._childless()  # noqa: SLF001
        except Exception:  # noqa: BLE001 - putting back, or what a call has left there, may raise anything
            return False

    def _put_back(self) -> bool:
        output = self._output
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = self._streams
        os.umask(self._umask)
        faulthandler.cancel_dump_traceback_later()
        _late.seeds = {}
        modules = [*sys.modules.values()]
        imported = modules != self._modules
        if imported and not self._only_imported(modules):
            return False
        for read, write, was in self._rows:
            if read() != was:
                if imported or write is None:
                    return False
                write(was)
                if read() != was:
                    return False
        return all(map(Own.same, self._own.values()))

    def _only_imported(self, modules: list[Any]) -> bool:
        """Whether what is new in sys.modules has been imported, nothing else has changed there, and no row is of it."""
        before, self._modules = self._modules, modules
        fresh = modules[len(before) :]
        return (
            modules[: len(before)] == before
            and all(getattr(module, "__spec__", None) is not None for module in fresh)
            and self._absent.isdisjoint(sys.modules)
        )


def sow(seed: int, index: int) -> None:
    """Seeds `random` and NumPy's global state for one job: each now, or, where it is not imported yet, once it is."""
    key = left = (seed << 64) + index + 1
    words = [1]  # the same algorithm as in `random`: with the same key it would draw the same numbers
    while left:
        words.append(left & 0xFFFFFFFF)
        left >>= 32
    _late.expect({"random": key, "numpy.random": words})


def forget() -> None:
    """A later import finds nothing to do here."""
    if _late in sys.meta_path:
        sys.meta_path.remove(_late)


class _Late:  # no subclass of importlib.abc, which takes 20 ms to import
    """Seeds modules when they are first imported: a job does that itself, or NumPy when it is first asked."""

    def __init__(self) -> None:
        self.seeds: dict[str, Any] = {}  # of those that are still to come

    def expect(self, seeds: dict[str, Any]) -> None:
        """Seeds what is there, and will seed the rest."""
        for name, seed in seeds.items():
            if (module := sys.modules.get(name)) is not None:
                module.seed(seed)
        self.seeds = {name: seed for name, seed in seeds.items() if name not in sys.modules}
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """The module's own spec, with a loader that seeds it."""
        del target
        if fullname not in self.seeds:
            return None
        seed = self.seeds.pop(fullname)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_seed(module: Any) -> None:
                execute(module)
                module.seed(seed)

            spec.loader.exec_module = execute_and_seed  # type: ignore[method-assign]
        return spec


_late = _Late()
