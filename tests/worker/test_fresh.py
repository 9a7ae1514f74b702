"""A result never depends on which calls shared a process: what a call changes, the next one does not see."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import hashlib
import os
import pickle
import random
import re
import subprocess
import sys
import types
import typing

import numpy as np
import pytest
from stable_driver import Driver, by_value

from nbqueue import perform
from nbqueue.worker import frames, fresh

# What a call may do to its process: (name, what it does, what another call then sees).
DEEDS = {
    "decimal's context": ("decimal.getcontext().prec = 3", "str(decimal.Decimal(1) / 3)"),
    "decimal's template": ("decimal.DefaultContext.prec = 5", "decimal.Context().prec"),
    "np.seterr": ("np.seterr(all='raise')", "np.geterr()"),
    "NumPy's error callback": ("np.seterrcall(print)", "np.geterrcall() is None"),
    "NumPy's print options": ("np.set_printoptions(precision=2)", "str(np.array([1 / 3]))"),
    "warnings filters": ("warnings.simplefilter('error')", "len(warnings.filters)"),
    "warnings shown once": (
        "warnings.simplefilter('once'); warnings.warn('w')",
        "len(warnings.onceregistry)",
    ),
    "how warnings are shown": ("warnings.showwarning = print", "warnings.showwarning is print"),
    "captured warnings": ("logging.captureWarnings(True)", "warnings.showwarning.__module__"),
    "recursion limit": ("sys.setrecursionlimit(sys.getrecursionlimit() + 500)", "sys.getrecursionlimit()"),
    "switch interval": ("sys.setswitchinterval(0.5)", "sys.getswitchinterval()"),
    "digits of integers": ("sys.set_int_max_str_digits(0)", "sys.get_int_max_str_digits()"),
    "excepthook": ("sys.excepthook = print", "sys.excepthook is print"),
    "displayhook": ("sys.displayhook = print", "sys.displayhook is print"),
    "unraisablehook": ("sys.unraisablehook = print", "sys.unraisablehook is print"),
    "excepthook of threads": ("threading.excepthook = print", "threading.excepthook is print"),
    "tracing": ("sys.settrace(lambda *_: None)", "sys.gettrace() is None"),
    "profiling": ("sys.setprofile(lambda *_: None)", "sys.getprofile() is None"),
    "tracing of threads": ("threading.settrace(lambda *_: None)", "threading.gettrace() is None"),
    "stack of threads": ("threading.stack_size(1 << 20)", "threading.stack_size()"),
    "finders of modules": ("sys.meta_path.append(type('F', (), {'find_spec': None}))", "len(sys.meta_path)"),
    "arguments of the process": ("sys.argv.append('more')", "sys.argv"),
    "stdin": ("sys.stdin = None", "sys.stdin is None"),
    "a closed stdin": ("sys.stdin.close()", "sys.stdin.closed"),
    "a closed stdout": ("sys.stdout.close()", "sys.stdout.closed"),
    "sys.path": ("sys.path.append('/more')", "sys.path"),
    "the locale": ("locale.setlocale(locale.LC_ALL, 'C.UTF-8')", "locale.setlocale(locale.LC_ALL)"),
    "the time zone": ("os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()", "time.tzname, os.environ.get('TZ')"),
    "a time zone that the environment does not tell": (
        "os.environ['TZ'] = 'Asia/Tokyo'; time.tzset(); del os.environ['TZ']",
        "time.tzname",
    ),
    "a variable that is gone": ("del os.environ['PATH']", "'PATH' in os.environ"),
    "socket timeout": ("socket.setdefaulttimeout(0.001)", "socket.getdefaulttimeout()"),
    "size of CSV fields": ("csv.field_size_limit(10)", "csv.field_size_limit()"),
    "logging, disabled": ("logging.disable(logging.ERROR)", "logging.root.manager.disable"),
    "logging's root": ("logging.basicConfig(level=10)", "logging.root.level, len(logging.root.handlers)"),
    "a logger's level": ("logging.getLogger('of.ours').setLevel(10)", "logging.getLogger('of.ours').level"),
    "a logger's handler": (
        "logging.getLogger('of.ours').addHandler(logging.NullHandler())",
        "len(logging.getLogger('of.ours').handlers)",
    ),
    "gc, disabled": ("gc.disable()", "gc.isenabled()"),
    "gc's thresholds": ("gc.set_threshold(7, 7, 7)", "gc.get_threshold()"),
    "gc's debugging": ("gc.set_debug(gc.DEBUG_UNCOLLECTABLE)", "gc.get_debug()"),
    "niceness": ("os.nice(1)", "os.getpriority(os.PRIO_PROCESS, 0)"),
    "affinity": ("os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])", "sorted(os.sched_getaffinity(0))"),
    "a resource limit": (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))",
        "resource.getrlimit(resource.RLIMIT_FSIZE)",
    ),
    "a hard resource limit": (
        "resource.setrlimit(resource.RLIMIT_CPU, (5000, 5000))",
        "resource.getrlimit(resource.RLIMIT_CPU)",
    ),
    "start method": ("multiprocessing.set_start_method('spawn', force=True)", "multiprocessing.get_start_method()"),
    "a builtin": ("builtins.print = len", "print is len"),
    "a builtin more": ("builtins.more = 1", "hasattr(builtins, 'more')"),
    "a module replaced": ("sys.modules['json'] = 1", "sys.modules.get('json') == 1"),
    "a timer": ("signal.setitimer(signal.ITIMER_VIRTUAL, 1000)", "signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)"),
    "a traceback to come": ("faulthandler.dump_traceback_later(0.2, exit=True)", "time.sleep(0.5)"),
    "a context variable": ("held.VARIABLE.set(1)", "held.VARIABLE.get(0)"),
    "pandas options": ("pd.set_option('display.precision', 2)", "pd.get_option('display.precision')"),
    "matplotlib's rcParams": ("mpl.rcParams['lines.linewidth'] = 9", "mpl.rcParams['lines.linewidth']"),
    "a figure": ("plt.plot([1])", "len(plt.gca().lines)"),
    "a module imported under another environment": (
        "os.environ['SEEN'] = 'changed'; import seeing",
        "__import__('seeing').SEEN",
    ),
}
MODULES = {
    name: name
    for name in (
        *("builtins", "csv", "decimal", "faulthandler", "gc", "held", "locale", "logging", "multiprocessing", "os"),
        *("resource", "signal", "socket", "sys", "threading", "time", "warnings"),
    )
} | {"np": "numpy", "pd": "pandas", "mpl": "matplotlib", "plt": "matplotlib.pyplot"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Modules that a stable finds."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "seeing.py").write_text("import os\nSEEN = os.environ.get('SEEN')\n")
    (folder / "held.py").write_text("import contextvars\nVARIABLE = contextvars.ContextVar('v')\n")
    return str(folder)


def done(deed, probe):
    """Does the deed, if there is one; else what there is to be seen."""
    import importlib

    words = re.findall(r"\w+", deed + probe)
    names = {short: importlib.import_module(module) for short, module in MODULES.items() if short in words}
    if deed:
        exec(deed, names)
        return None
    return repr(eval(probe, names))


@pytest.fixture(scope="module", params=[True, False], ids=["imported before", "imported in the call"])
def driver(folder, request):
    preload = tuple(MODULES.values()) if request.param else ()
    with Driver(done, env={"MPLBACKEND": "agg"}, setup=frames.Setup(paths=(folder,), preload=preload)) as driver:
        driver.until(lambda: driver.ready is not None, 60)
        yield driver


@pytest.mark.parametrize("name", DEEDS)
def test_what_a_call_changes_in_its_process_is_not_seen_by_the_next(name, driver):
    deed, probe = (perform.pack(words, {}) for words in [(DEEDS[name][0], ""), ("", DEEDS[name][1])])
    alone = driver.values(probe, isolate=True)
    assert driver.values(deed, probe, probe, deed, probe, slice=60.0) == [None, *alone * 2, None, *alone]


# ---------------------------------------------------------------- what a function takes along


def of_a_generator():
    g = np.random.default_rng(1)
    return lambda _: g.standard_normal()


def of_a_dict():
    cache = {}
    return lambda x: cache.setdefault(len(cache), x) and len(cache)


def of_a_global():
    def f(_):
        return count()

    names = {}
    exec("n = 0\ndef count():\n    global n\n    n += 1\n    return n\n", names)
    count = names["count"]
    return f


def of_a_nonlocal():
    n = 0

    def f(_):
        nonlocal n
        n += 1
        return n

    return f


def of_an_attribute_of_the_function():
    def f(_):
        f.calls = getattr(f, "calls", 0) + 1
        return f.calls

    return f


def of_a_bound_method():
    class Drawing:
        def __init__(self):
            self.rng = random.Random(1)

        def draw(self, _):
            return self.rng.random()

    return Drawing().draw


def of_a_callable_object():
    @dataclasses.dataclass
    class Counter:
        n: int = 0

        def __call__(self, _):
            self.n += 1
            return self.n

    return Counter()


def of_a_default():
    def f(_, seen=[]):  # noqa: B006 - the fault that is looked for
        seen.append(1)
        return len(seen)

    return f


def of_a_default_by_name():
    def f(_, *, seen={}):  # noqa: B006 - as above
        seen[len(seen)] = 1
        return len(seen)

    return f


def of_a_class():
    class Counter:
        n = 0

    def f(_):
        Counter.n += 1
        return Counter.n

    return f


def of_a_name_that_a_class_had_not():
    class Empty:
        pass

    def f(_):
        before = hasattr(Empty, "more")
        Empty.more = 1
        return before

    return f


def of_a_list_in_a_class():
    class Base:
        seen = []  # noqa: RUF012 - as above

        @classmethod
        def see(cls):
            cls.seen.append(1)
            return len(cls.seen)

    class Derived(Base):
        pass

    return lambda _: Derived.see()


def of_partial_arguments():
    def f(seen, _):
        seen.append(1)
        return len(seen)

    return functools.partial(f, [])


def of_a_decorated_function():
    def counted(function):
        counter = collections.Counter()

        @functools.wraps(function)
        def inner(x):
            counter["calls"] += 1
            return function(x), counter["calls"]

        return inner

    @counted
    def f(x):
        return x

    return f


def of_an_array():
    state = np.zeros(3)

    def f(_):
        state[0] += 1
        return float(state[0])

    return f


def of_an_iterator():
    numbers = iter(range(1000))
    return lambda _: next(numbers)


def of_a_module_made_by_hand():
    made = types.ModuleType("made")
    made.n = 0

    def f(_):
        made.n += 1
        return made.n

    return f


HOLDING = [each for name, each in list(globals().items()) if name.startswith("of_")]


@pytest.mark.parametrize("made", HOLDING)
def test_what_a_function_took_along_is_fresh_in_each_call(made):
    with Driver(made()) as driver:
        alone = driver.values(1, 1, isolate=True, seed=1)
        shared = driver.values(*[1] * 6, slice=60.0, seed=1)
    assert alone[0] == alone[1]
    assert shared == [alone[0]] * 6


class Color(enum.Enum):
    RED = 1


class Point(typing.NamedTuple):
    x: int
    y: int = 2


def constant():
    scale, point, color, words = 2.5, Point(1), Color.RED, re.compile("a|b")

    def helper(x):
        return x * scale + point.x + color.value if words.match("a") else os.getpid()

    return helper


def test_calls_share_a_function_that_holds_nothing_to_be_changed():
    copies = fresh.Copies(lambda: pytest.fail("opened again"), pickle.loads(by_value(constant())))
    function = copies.function
    function(1)
    assert copies.renew(0.0)
    assert copies.function is function


def test_a_copy_that_costs_more_than_a_process_is_not_made_again():
    table = dict.fromkeys(range(300_000), 1.5)

    def f(x):
        return len(table) + x, os.getpid()

    with Driver(f) as driver:
        values = driver.values(*range(4), slice=60.0)
    assert [value for value, _ in values] == [300_000 + x for x in range(4)]
    assert max(collections.Counter(pid for _, pid in values).values()) <= 2  # the first one shows what it costs


def test_a_cheap_copy_keeps_the_process():
    counter = collections.Counter()

    def f(x):
        counter[x] += 1
        return sum(counter.values()), os.getpid()

    with Driver(f) as driver:
        values = driver.values(*range(20), slice=60.0)
    assert {count for count, _ in values} == {1}
    assert len({pid for _, pid in values}) < 20


STATEFUL = """
import random
import numpy as np

n = 0
seen = []
counts = {"calls": 0}
rng = random.Random(1)
generator = np.random.default_rng(1)
legacy = np.random.RandomState(1)
system = random.SystemRandom()

def rebind(_):
    global n
    n += 1
    return n

def append(x):
    seen.append(x)
    return len(seen)

def count(_):
    counts["calls"] += 1
    return counts["calls"]

def draw(_):
    return rng.random()

def generate(_):
    return generator.random()

def generate_as_before(_):
    return legacy.random()

def warn(_):
    import warnings
    warnings.warn("something")
    return 1

def draw_from_the_system(_):
    return system.random() < 1
"""


NAMES = re.findall(r"^def (\w+)", STATEFUL, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_of_the_users_that_a_call_has_changed_ends_with_the_process(name, tmp_path):
    (tmp_path / "stateful.py").write_text(STATEFUL)
    digest = hashlib.sha256(STATEFUL.encode()).hexdigest()
    named = b"cpkgutil\nresolve_name\n(Vstateful." + name.encode() + b"\ntR."
    with Driver(named, path=(str(tmp_path),), modules={"stateful": digest}) as driver:
        alone = driver.values(1, isolate=True)
        assert driver.values(*[1] * 5, slice=60.0) == alone * 5


# ---------------------------------------------------------------- what that costs

COUNTED = """
import importlib, os, sys
from nbqueue.model import FunctionRecord
from nbqueue.worker import horse, loading, restore
record = FunctionRecord(key="k", label="f", payload=b"", python="3", interpreter="", host="h", cwd="/")
loading.settle_in(record)
for name in sys.argv[1:]:
    importlib.import_module(name)
counted = {"call": 0, "c_call": 0}
def count(frame, event, what):
    counted[event] = counted.get(event, 0) + 1
sys.setprofile(count)
scene = restore.Scene(os.dup(1))
before = dict(counted)
same = scene.restore()
after = dict(counted)
sys.setprofile(None)
assert same
print(after["call"] - before["call"], after["c_call"] - before["c_call"])
"""


@pytest.mark.parametrize(
    ("libraries", "python", "c"),
    [((), 13, 30), (("numpy",), 20, 40), (("pandas",), 24, 46), (("matplotlib.pyplot",), 26, 80)],
    ids=lambda each: "+".join(each) if isinstance(each, tuple) else str(each),
)
def test_after_each_call_a_child_makes_few_calls_to_compare_its_process(libraries, python, c):
    """Of functions in Python, each of which costs as much as several others, and in C; NumPy before 2.2 needs more."""
    child = subprocess.run([sys.executable, "-c", COUNTED, *libraries], capture_output=True, text=True, check=True)
    counted = [int(each) for each in child.stdout.split()]
    assert (counted[0] <= python, counted[1] <= c) == (True, True), counted


def loaded(_):
    import sys

    return sorted({"locale", "random", "resource", "signal", "subprocess"} & set(sys.modules))


def test_a_child_has_not_imported_by_itself_what_would_have_to_be_looked_at_after_each_call():
    with Driver(loaded) as driver:
        assert driver.values(1) == [[]]


def test_what_can_be_changed_once_it_is_imported_is_looked_at_from_then_on():
    def changes(deed):
        import resource
        import signal

        if deed:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CPU, (5000, 5000))
        return signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN, resource.getrlimit(resource.RLIMIT_CPU)[0] == 5000

    with Driver(changes) as driver:
        assert driver.values(False, True, False, True, False, slice=60.0)[::2] == [(False, False)] * 3
