"""The function of a call as it was sent, whatever the calls before it in the same process have done to what it holds.

What a function took along (globals of a notebook, closures, defaults, bound objects) belongs to each call alone, as if
it had a process of its own. Where nothing of that can change, all calls share one function, and names that a call has
bound anew are seen by comparing identities. Everything else is opened again from its pickle before the next call.
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import math
import operator
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    EllipsisType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NotImplementedType,
)
from typing import Any

from nbqueue import wire
from nbqueue.worker import notebook

_TRIED = 1 << 21  # bytes: a pickle over this is not opened once more only to learn how long that takes
_PACE = 1e-9  # seconds a byte in which a pickle is opened at the very best
_MOST = 20_000  # things looked at; a graph beyond that is data

_CONSTANTS = (
    int, float, complex, str, bytes, range, slice, dt.date, dt.time, dt.timedelta,
    dt.tzinfo, PurePath, re.Pattern, CodeType, type(None), EllipsisType, NotImplementedType,
    GetSetDescriptorType, MemberDescriptorType, operator.itemgetter, operator.attrgetter, operator.methodcaller,
)  # fmt: skip
# The same, of modules that need not be there; a logger belongs to its process, and travels by name.
_FOREIGN = (
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
    ("uuid", "UUID"),
    ("logging", "Logger"),
    ("numpy", "generic"),
    ("numpy", "dtype"),
    ("numpy", "ufunc"),
)
_OTHERS = ("__warningregistry__",)  # what Python writes into globals by itself


class Copies:
    """The copies of one function that the calls of a process are made with, one after the other."""

    def __init__(
        self, load: Callable[[], Callable[..., Any]], function: Callable[..., Any] | None = None, *, alone: bool = False
    ) -> None:
        """`load` opens a copy; `function` is one that no call has touched.

        `alone` is for a process that makes nothing but these calls: its `__main__`, and the classes that it knows, are
        those of the copy. Elsewhere they belong to the user.
        """
        self._load = load
        self._alone = alone
        self.seconds = 0.0  # that a copy takes, as far as is known
        self._take(load() if function is None else function)

    def _take(self, function: Callable[..., Any]) -> None:
        if self._alone:
            notebook.reveal(function)
        self.function = function
        self._classes = wire.known_classes()
        self._held = Held(function, [vars(sys.modules["__main__"])] if self._alone else [])

    def weigh(self, size: int) -> None:
        """Learns what a copy costs, if copies are needed; `size`, in bytes, is that of the pickle."""
        if self._held.mutable:
            self.seconds = size * _PACE
            if size < _TRIED:
                began = time.perf_counter()
                wire.know_classes({})
                self._load()
                wire.know_classes(self._classes)
                self.seconds = time.perf_counter() - began

    def renew(self, most: float = math.inf) -> bool:
        """Makes `function` one that no call has touched; False where that takes more than `most` seconds."""
        if not self._held.mutable and self._held.reset():
            if self._alone:
                wire.know_classes(self._classes)
            return True
        if self.seconds > most:
            return False
        began = time.perf_counter()
        if self._alone:
            wire.know_classes({})  # the next copy has classes of its own
        function = self._load()
        if self._alone:
            notebook.leave_main()
        self._take(function)
        self.seconds = time.perf_counter() - began
        return True


class Held:
    """What a function holds by value, found by walking through it."""

    def __init__(self, function: Callable[..., Any], namespaces: Iterable[dict[str, Any]] = ()) -> None:
        """`namespaces` are those of others, in which a call may bind names that the next one finds."""
        self.mutable = False  # whether a call may change something in place
        self._spaces: list[Mapping[str, Any]] = [*namespaces]
        self._cells: list[tuple[CellType, Any]] = []
        self._functions: list[tuple[FunctionType, Any, Any, CodeType]] = []
        self._caches: list[Any] = []
        self._constants = (*_CONSTANTS, *_loaded(_FOREIGN))
        seen: dict[int, Any] = {}
        waiting: list[Any] = [function]
        while waiting and not self.mutable:
            thing = waiting.pop()
            if id(thing) not in seen:
                seen[id(thing)] = thing  # kept, so that no id is given twice
                waiting += self._visit(thing)
                self.mutable = self.mutable or len(seen) > _MOST
        self._names = Names(self._spaces)

    def reset(self) -> bool:
        """Whether nothing that it holds was bound anew; empties its caches."""
        for cache in self._caches:
            if cache.cache_info().currsize:
                cache.cache_clear()
        for function, defaults, named, code in self._functions:
            if function.__defaults__ is not defaults or function.__kwdefaults__ is not named:
                return False
            if function.__code__ is not code:
                return False
        for cell, content in self._cells:
            if _content(cell) is not content:
                return False
        return self._names.same()

    def _visit(self, thing: Any) -> Iterator[Any]:
        if isinstance(thing, FunctionType | type | wire.CACHED):
            # Python's own classes cannot be changed, though some have no name to be found by, as that of None.
            if getattr(thing, "__module__", None) != "builtins" and not wire.by_reference(thing):
                yield from self._code(thing)
        elif isinstance(thing, functools.partial):
            yield from (thing.func, *thing.args, *thing.keywords.values())
            yield from self._named(vars(thing))
        elif isinstance(thing, MethodType):
            yield from (thing.__self__, thing.__func__)
        elif isinstance(thing, BuiltinFunctionType):
            yield thing.__self__
        elif isinstance(thing, ModuleType):
            self.mutable = sys.modules.get(thing.__name__) is not thing
        else:
            yield from self._data(thing)

    def _data(self, thing: Any) -> Iterator[Any]:
        yield type(thing)
        if isinstance(thing, enum.Enum):
            yield thing.value
        elif isinstance(thing, tuple | frozenset):
            yield from thing
        elif not isinstance(thing, self._constants) or getattr(thing, "__dict__", None):
            self.mutable = True

    def _code(self, thing: Any) -> Iterator[Any]:
        if isinstance(thing, type):
            self._spaces.append(vars(thing))
            yield from (*thing.__bases__, *_members(thing))
        elif isinstance(thing, FunctionType):
            yield from self._function(thing)
        else:
            self._caches.append(thing)
            yield from self._named(vars(thing))

    def _function(self, function: FunctionType) -> Iterator[Any]:
        self._functions.append((function, function.__defaults__, function.__kwdefaults__, function.__code__))
        for names in (function.__globals__, function.__dict__, function.__kwdefaults__ or {}):
            yield from self._named(names)
        yield from function.__defaults__ or ()
        for cell in function.__closure__ or ():
            self._cells.append((cell, content := _content(cell)))
            yield content

    def _named(self, names: Mapping[str, Any]) -> Iterator[Any]:
        if all(each is not names for each in self._spaces):
            self._spaces.append(names)
            yield from (value for name, value in names.items() if name != "__builtins__")


class Names:
    """Namespaces, and what they held when they were looked at."""

    def __init__(self, spaces: Iterable[Mapping[str, Any]]) -> None:
        self._spaces = [*spaces]
        self._views = [space.values() for space in self._spaces]
        self._keys = [*chain.from_iterable(self._spaces)]
        self._values = [*chain.from_iterable(self._views)]

    def same(self) -> bool:
        """Whether each name is still bound to the same object, and none has come or gone."""
        if [*chain.from_iterable(self._spaces)] != self._keys and not self._cleaned():
            return False
        return all(map(operator.is_, chain.from_iterable(self._views), self._values))

    def _cleaned(self) -> bool:
        """Takes out what Python writes into namespaces by itself; whether they have the same names then."""
        for name in set(_OTHERS).difference(self._keys):
            for space in self._spaces:
                if isinstance(space, dict):
                    space.pop(name, None)
        return [*chain.from_iterable(self._spaces)] == self._keys


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return CellType  # the variable has no value yet


def _loaded(kinds: tuple[tuple[str, str], ...]) -> Iterator[type]:
    for module, name in kinds:
        if (found := getattr(sys.modules.get(module), name, None)) is not None:
            yield found


def _members(kind: type) -> Iterator[Any]:
    """What the attributes of a class are made of, but for those that Python keeps for itself."""
    own = {"_abc_impl"}
    if issubclass(kind, enum.Enum):
        own.update(name for name in vars(kind) if name.startswith("_") or name in kind.__members__)
        yield from (each.value for each in kind.__members__.values())
    elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
        own.update(("_fields", "_field_defaults", *kind._fields))
    for name, member in vars(kind).items():
        if isinstance(member, FunctionType):
            yield member
        elif isinstance(member, staticmethod | classmethod):
            yield member.__func__
        elif isinstance(member, property):
            yield from (member.fget, member.fset, member.fdel)
        elif isinstance(member, functools.cached_property):
            yield member.func
        elif not (name.startswith("__") or name in own):
            yield member
