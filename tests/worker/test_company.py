"""Same seed, same numbers: whatever calls share a process, in whatever order, over whatever slices, and run again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_driver import Driver

from nbqueue import perform, wire
from nbqueue.worker import frames

DEEDS = [
    "decimal.getcontext().prec = 3",
    "np.seterr(all='raise')",
    "np.set_printoptions(precision=2)",
    "warnings.simplefilter('error')",
    "sys.setrecursionlimit(sys.getrecursionlimit() + 50)",
    "locale.setlocale(locale.LC_ALL, 'C')",
    "logging.basicConfig(level=10)",
    "gc.disable()",
    "os.nice(1)",
    "os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()",
    "builtins.more = 1",
    "random.seed(1); np.random.seed(1)",
    "resource.setrlimit(resource.RLIMIT_CPU, (5000, 5000))",
    "threading.Thread(target=time.sleep, args=(9,)).start()",
    "generator.random()",
    "cache[len(cache)] = 1",
    "count()",
    "drawer.draw()",
    "default()",
    "Attribute.n += 1",
    "Attribute.more = 1",
    "cached()",
    "raise ValueError('pure calls go on')",
    "os._exit(3)",
]
MODULES = ("builtins", "decimal", "gc", "locale", "logging", "numpy", "os", "random", "resource", "sys", "threading")
PROBE = (
    "(str(decimal.Decimal(1) / 3), repr(np.array([1 / 3])), np.geterr(), len(warnings.filters), time.tzname,"
    " sys.getrecursionlimit(), logging.root.level, gc.isenabled(), os.getpriority(os.PRIO_PROCESS, 0),"
    " locale.setlocale(locale.LC_ALL), hasattr(builtins, 'more'), resource.getrlimit(resource.RLIMIT_CPU),"
    " random.random(), np.random.random(), float(rng().random()), generator.random(), len(cache), count(),"
    " drawer.draw(), default(), Attribute.n, hasattr(Attribute, 'more'), cached())"
)


def made():
    """A function that does what it is told, or looks at all that others may have done."""
    import functools
    import importlib
    import random

    import numpy as np

    generator, cache, n = np.random.default_rng(1), {}, 0

    class Drawer:
        def __init__(self):
            self.random = random.Random(1)

        def draw(self):
            return self.random.random()

    class Attribute:
        n = 0

    def count():
        nonlocal n
        n += 1
        return n

    def default(seen=[]):  # noqa: B006 - the fault that is looked for
        seen.append(1)
        return len(seen)

    @functools.cache
    def cached():
        return random.random()

    drawer = Drawer()

    def f(does):
        from nbqueue import rng

        names = {name: importlib.import_module(name) for name in MODULES} | {"rng": rng, "np": np}
        names |= {name: importlib.import_module(name) for name in ("time", "warnings")}
        names |= {"generator": generator, "cache": cache, "count": count, "drawer": drawer, "default": default}
        names |= {"Attribute": Attribute, "cached": cached}
        if does:
            exec(does, names)
            return None
        return repr(eval(PROBE, names))

    return f


@pytest.fixture(scope="module")
def driver():
    preload = frames.Setup(preload=(*MODULES, "numpy.random", "time", "warnings"))
    with Driver(wire.by_value(made(), 1 << 26), setup=preload) as driver:
        yield driver


@pytest.fixture(scope="module")
def alone():
    """What a call with this index gives alone."""
    return {}


def job(driver, index, attempt, deed):
    driver.seq += 1
    return frames.Job(driver.seq - 1, index, attempt, perform.pack((deed,), {}))


def sent(driver, slot, jobs, *, isolate=False, part=60.0):
    facts = {"timeout": None, "grace": 0.3, "slice": part, "max_result": 1 << 26, "seed": 7}
    run = frames.Run(slot=slot, batch="b", label="f", isolate=isolate, jobs=jobs, **facts)
    driver.channel.send(frames.RUN, frames.encode(run))
    driver.runs.update({each.seq: run._replace(jobs=[each]) for each in jobs})


CALL = st.tuples(st.integers(0, 3), st.integers(1, 2), st.one_of(st.just(""), st.sampled_from(DEEDS)))


@settings(max_examples=25)
@given(
    calls=st.lists(CALL, min_size=2, max_size=14),
    slots=st.integers(1, 2),
    part=st.sampled_from([0.0, 0.002, 60.0]),
)
def test_a_pure_call_gives_what_it_gives_alone(driver, alone, calls, slots, part):
    for index in {index for index, _, deed in calls if not deed} - set(alone):
        one = job(driver, index, 1, "")
        sent(driver, 0, [one], isolate=True)
        alone[index] = wire.loads(driver.outcomes([one.seq], 60)[0].value)
    jobs = [(job(driver, *call), call) for call in calls]
    for slot in range(slots):
        sent(driver, slot, [each for each, _ in jobs[slot::slots]], part=part)
    rides = driver.outcomes([each.seq for each, _ in jobs], 60)
    for ride, (_, (index, _, deed)) in zip(rides, jobs, strict=True):
        if not deed:
            assert wire.loads(ride.value) == alone[index]
