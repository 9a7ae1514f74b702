"""Digests: the same for what is equal, here and in another process; different for what is not."""

import abc
import collections
import dataclasses
import datetime as dt
import enum
import functools
import os
import pathlib
import re
import subprocess
import sys
import threading
import typing

import numpy as np
import pandas as pd
import pytest

from nbqueue.client.calls import function_diff
from nbqueue.client.calls.argument_hashes import ArgumentHashes
from nbqueue.client.calls.fingerprint import Fingerprinter, NotComparable

MAKE = """
import collections, dataclasses, enum, functools, typing
import numpy as np, pandas as pd

@dataclasses.dataclass
class Point:
    x: int = 3
    near: list = dataclasses.field(default_factory=list)
    def moved(self): return super().__repr__()

class Kind(enum.Enum):
    one = 1

class Slots:
    __slots__ = ("a", "b")
    def __init__(self): self.a, self.b = 1, {"x", "y", 3}

class Pair(typing.NamedTuple):
    a: int
    b: str = "b"

def fall(n): return n and fall(n - 1)
def made(k):
    def inner(x, d=[1], *, q={"a", "b"}): return fall(x * k) + 3 + (x in {"u", "v", "w"}) + len(table)
    return inner

table = {"f": lambda x: x + 1, "loop": []}
table["loop"].append(table)
frame = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": pd.Categorical(["u", "v"])}, index=["i", "j"])
values = [Point(1, [2]), Kind.one, Slots(), Pair(1), made(7), table, {"b", "a", "c"}, frozenset({("x", 1), ("y", 2)}),
    np.random.default_rng(3), frame, frame["b"], frame.index, pd.date_range("2020", periods=3, tz="Europe/Berlin"),
    np.array([1, "a", None], dtype=object), np.float32(3), functools.partial(made(2), 3), Point(2).moved, 10**5000,
    collections.Counter("abcab"), [frame["a"]] * 2]
"""
TELL = """
from nbqueue.client.calls.fingerprint import Fingerprinter
print("\\n".join(Fingerprinter().of(value).hex() for value in values))
"""


def told(text, seed):
    done = subprocess.run(
        [sys.executable, "-c", text + TELL], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed}
    )
    assert not done.stderr
    return done.stdout.split()


def test_another_process_finds_the_same_wherever_it_stands():
    first = told(MAKE, "1")
    assert len(set(first)) == 20
    assert told("\n\n# further down" + MAKE, "2") == first
    assert told(MAKE + "\nimport pickle, cloudpickle; cloudpickle.dumps(values[:9])\n", "3") == first  # leaves traces


def pairs():
    class Here(abc.ABC):
        @abc.abstractmethod
        def go(self): ...

    same = functools.partial(pow, 2)
    yield from [
        (1, True), (1, 1.0), (0.0, -0.0), ("1", b"1"), ([1], (1,)), ([[]], [()]), ({1: 2}, {2: 1}), ("a", "b"),
        (np.arange(3), np.arange(3.0)), (np.arange(4), np.arange(4).reshape(2, 2)), (np.float32(1), np.float64(1)),
        (pd.Series([1]), pd.Series([1], index=["a"])), (pd.Series([1], name="a"), pd.Series([1], name="b")),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})), (same, functools.partial(pow, 3)),
        (pd.Categorical(["a"], ["a", "b"]), pd.Categorical(["a"], ["b", "a"])), (len, max), (pathlib.Path("a"), "a"),
        (re.compile("a"), re.compile("a", re.IGNORECASE)), (dt.date(2020, 1, 1), dt.date(2020, 1, 2)),
        (collections.OrderedDict(a=1), {"a": 1}), ({"a"}, frozenset({"a"})), ("x".join, "y".join), (int, float),
        (typing.List[int], typing.List[str]), (Here, abc.ABC), (range(3), range(4)), (slice(1), slice(2)),  # noqa: UP006
        (lambda x: x + 1, lambda x: x + 2), (lambda x: x, lambda y: y), (enum.Enum("E", "a"), enum.Enum("E", "b")),
        (dataclasses.make_dataclass("D", ["a"]), dataclasses.make_dataclass("D", ["b"])),
    ]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), list(pairs()))
def test_what_differs_has_other_digests(one, other):
    digests = {Fingerprinter().of(value) for value in (one, other, [one], [other], {"k": one}, {"k": other})}
    assert len(digests) == 6


@functools.lru_cache
def cached(x):
    return x


def test_what_cannot_be_judged_is_doubtful():
    local = functools.lru_cache(lambda x: x)
    assert Fingerprinter().of(local) == Fingerprinter().of(functools.lru_cache(lambda x: x))
    assert Fingerprinter().of(local) != Fingerprinter().of(functools.lru_cache(lambda x: x + 1))
    for doubtful in (threading.Lock(), (x for x in ()), sys.stdout, [{"deep": threading.Lock()}]):
        with pytest.raises(NotComparable):
            Fingerprinter().of(doubtful)
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(NotComparable, match="nested"):
        Fingerprinter().of(deep)


def test_shared_parts_cost_once_and_circles_end():
    wide = [object]
    for _ in range(200):
        wide = [wide, wide]
    assert Fingerprinter().of(wide)
    one, other = [], []
    one.append(one)
    other.append([other])
    assert Fingerprinter().of(one) != Fingerprinter().of(other)


def test_marks_are_keyed_salted_and_blind_to_labels():
    def marked(key, salt, *calls):
        marks = ArgumentHashes(key, salt)
        assert list(marks.reading(calls)) == list(calls)
        return marks.span(0, len(calls))

    call, salt = ((1,), {"a": 2, "b": 3}, None), b"s" * 16
    mark = marked(b"key", salt, call)
    assert len(mark) == 16
    assert mark == marked(b"key", salt, ((1,), {"b": 3, "a": 2}, "label"))
    others = [marked(b"other", salt, call), marked(b"key", b"t" * 16, call), marked(b"key", salt, ((1, 2), {}, None))]
    assert len({mark, *others}) == 4


def test_the_classes_of_python_itself_are_no_part_of_a_function():
    space = {"__name__": "__main__"}
    exec("import time, math\ndef rest(x):\n    time.sleep(0)\n    return math.pi * len(x)", space)
    kinds = {
        label.partition("\0")[0].partition(" ")[0]
        for label in function_diff.fingerprint_of(space["rest"], "rest").parts
    }
    assert kinds == {"code", "constant", "global"}
