"""Digests of values and of code that are the same in every process: equal values have equal digests.

Pickles cannot be compared: they depend on shared references, the order of sets, file names and line numbers. Here code
counts without file, lines and docstrings, sets are sorted, arrays count by their bytes, and functions and classes of a
notebook by everything that they use. A value that cannot be compared raises NotComparable; its result is not reused.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

from nbqueue import wire
from nbqueue.client.calls import closures, dataframes

SIZE = 16
_ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
_SLOTS = (MemberDescriptorType, GetSetDescriptorType, WrapperDescriptorType)
_NO_MEMBERS = frozenset(  # attributes of a class that do not change its behaviour
    (
        *("__module__", "__dict__", "__weakref__", "__doc__", "__qualname__", "__firstlineno__"),
        *("__static_attributes__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("_abc_impl", "__orig_bases__", "__parameters__", "__slotnames__"),
    )
)


class NotComparable(Exception):  # noqa: N818 - named as the errors of errors.py
    """A value cannot be compared; the message says why."""


def joined(tag: str, *parts: bytes | memoryview) -> bytes:
    """One digest of several byte strings; their lengths count."""
    found = hashlib.blake2b(tag.encode(), digest_size=SIZE)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()


def plain(value: Any) -> bytes | None:
    """The repr of numbers, strings, and flat lists, tuples and dicts of them, as bytes; None for all else."""
    cls = type(value)
    if cls in (list, tuple):
        flat = _ATOMS.issuperset(map(type, value))
    elif cls is dict:
        flat = _ATOMS.issuperset(map(type, value)) and _ATOMS.issuperset(map(type, value.values()))
    else:
        flat = cls in _ATOMS
    try:
        return repr(value).encode("utf-8", "surrogatepass") if flat else None
    except ValueError:
        return None  # an integer of thousands of digits


class Fingerprinter:
    """Digests of values, which must not change meanwhile. `of` raises NotComparable."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, bytes]] = {}  # with the value: a living object's id is unique
        self._path: dict[int, int] = {}  # id of each object around the present one -> its depth
        self._low = math.inf  # the smallest depth that a reference back pointed to

    def of(self, value: Any) -> bytes:
        """The digest of a value."""
        text = plain(value)
        if text is not None:
            return joined("plain", text)
        try:
            return self._nested(value)
        except RecursionError:
            raise NotComparable("it is nested too deeply") from None

    def _nested(self, value: Any) -> bytes:
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if (at := self._path.get(key)) is not None:
            self._low = min(self._low, at)
            return joined("back", b"%d" % (len(self._path) - at))
        depth, before, self._low = len(self._path), self._low, math.inf
        self._path[key] = depth
        try:
            digest = self._digest(value)
        finally:
            del self._path[key]
        if self._low >= depth:  # no reference to an object around it: the digest does not depend on the position
            self._done[key] = value, digest
            self._low = math.inf
        self._low = min(before, self._low)
        return digest

    def _all(self, tag: str, *values: Any) -> bytes:
        return joined(tag, *(self.of(value) for value in values))

    def _digest(self, value: Any) -> bytes:
        cls = type(value)
        for classes, digest in _BY_CLASS:
            if cls in classes:
                return digest(self, value)
        if isinstance(value, set | frozenset):
            return joined("set", self.of(cls), *sorted(map(self.of, value)), self.of(getattr(value, "__dict__", None)))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            return joined("module", value.__name__.encode())
        if (found := _arrays(self, value)) is not None:
            return found
        return self._object(value)

    def _integer(self, value: int) -> bytes:
        return joined("plain", hex(value).encode())

    def _code(self, value: CodeType) -> bytes:
        found = CodeFingerprint(value)
        return joined("code", found.digest, *(self.of(value) for _, value in found.constants))

    # ------------------------------------------------------------ functions and classes

    def _function(self, function: FunctionType) -> bytes:
        if not closures.by_value(function):
            return by_name(function)
        parts = [self.of(function.__code__)]
        for name, value in used(function):
            parts += [name.encode(), self.of(value)]
        return joined("function", *parts)

    def _method(self, method: MethodType) -> bytes:
        return self._all("method", method.__self__, method.__func__)

    def _class(self, cls: type) -> bytes:
        if not closures.by_value(cls):
            return by_name(cls)
        parts = [cls.__name__.encode(), self._all("bases", type(cls), *cls.__bases__)]
        for name, member in members(cls):
            parts += [name.encode(), self.of(member)]
        return joined("class", *parts)

    # ------------------------------------------------------------ all else

    def _object(self, value: Any) -> bytes:
        cls = type(value)
        if wire.is_shell(value):
            return by_name(cls)
        try:
            reducer = copyreg.dispatch_table.get(cls)
            reduced: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except Exception as why:  # any class may refuse
            raise NotComparable(f"{cls.__name__} cannot be pickled: {why}") from why
        if isinstance(reduced, str):
            return self._named(value, reduced)
        made, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        try:
            rest = [*(items or ())], [*(pairs or ())]
        except Exception as why:
            raise NotComparable(f"{cls.__name__} cannot be pickled: {why}") from why
        return self._all("object", cls, made, arguments, state, *rest)

    def _named(self, value: Any, name: str) -> bytes:
        """The digest of an object that is pickled by name; a name in a notebook does not identify its value."""
        inner = getattr(value, "__wrapped__", None)
        if inner is not None:
            return self._all("wrapped", type(value), inner)
        module = getattr(value, "__module__", None) or ""
        if module in {"", "__main__", "__mp_main__"}:
            raise NotComparable(f"{type(value).__name__} {name} is pickled by name only")
        return joined("name", module.encode(), name.encode())


def by_name(thing: Any) -> bytes:
    """The digest of a function or class of a module: its name. The module's source is compared separately."""
    return joined("name", str(thing.__module__).encode(), thing.__qualname__.encode())


def _builtin(fingerprinter: Fingerprinter, value: Any) -> bytes:
    owner = getattr(value, "__self__", None)
    if owner is None or isinstance(owner, ModuleType):
        return joined("name", str(value.__module__).encode(), value.__qualname__.encode())
    return joined("method", fingerprinter.of(owner), value.__name__.encode())


def _mapping(fingerprinter: Fingerprinter, value: Mapping[Any, Any]) -> bytes:
    return joined("dict", *(fingerprinter.of(each) for pair in value.items() for each in pair))


_BY_CLASS: tuple[tuple[tuple[type, ...], Callable[[Fingerprinter, Any], bytes]], ...] = (
    ((int,), Fingerprinter._integer),  # noqa: SLF001 - thousands of digits: smaller ones are plain
    ((list,), lambda fingerprinter, value: joined("list", *map(fingerprinter.of, value))),
    ((tuple,), lambda fingerprinter, value: joined("tuple", *map(fingerprinter.of, value))),
    ((dict, MappingProxyType), _mapping),
    ((FunctionType,), Fingerprinter._function),  # noqa: SLF001 - its own module
    ((MethodType,), Fingerprinter._method),  # noqa: SLF001
    ((CodeType,), Fingerprinter._code),  # noqa: SLF001
    ((BuiltinFunctionType,), _builtin),
    ((staticmethod, classmethod), lambda one, value: joined(type(value).__name__, one.of(value.__func__))),
    ((property,), lambda one, value: joined("property", *map(one.of, (value.fget, value.fset, value.fdel)))),
    (_SLOTS, lambda _, value: joined("slot", value.__name__.encode())),
    ((functools.cached_property,), lambda fingerprinter, value: joined("cached", fingerprinter.of(value.func))),
)


# ---------------------------------------------------------------- what a function uses


def used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """(label, value) of a function's defaults, closures, globals and attributes, in a fixed order."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][code.co_argcount - len(defaults) :]
    yield from ((f"default {name}", value) for name, value in zip(names, defaults, strict=False))
    yield from ((f"default {name}", value) for name, value in sorted((function.__kwdefaults__ or {}).items()))
    yield from ((f"closure {name}", value) for name, value in wire.closed_over(function))
    known = function.__globals__
    yield from ((f"global {name}", known[name]) for name in sorted(closures.names_of(code)[0]) if name in known)
    yield from ((f"attribute {name}", value) for name, value in sorted(vars(function).items()))


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """(name, value) of the attributes of a class that define its behaviour."""
    yield from ((name, member) for name, member in vars(cls).items() if name not in _NO_MEMBERS)


class CodeFingerprint:
    """A code object without constants, file and lines, nested code included; `constants` are (line, value)."""

    def __init__(self, code: CodeType) -> None:
        self.constants: list[tuple[int, Any]] = []
        self.lines: list[tuple[int, bytes]] = []  # (line, digest of its instructions), in order
        self._words: list[bytes] = []
        self._line = code.co_firstlineno
        self._walk(code)
        self.digest = joined("skeleton", *self._words)

    def _walk(self, code: CodeType) -> None:
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        head = repr((code.co_name, counts, code.co_varnames, code.co_freevars, code.co_cellvars))
        self._say(f"{head} {code.co_exceptiontable!r}")
        for step in dis.get_instructions(code):
            position = step.positions.lineno if step.positions is not None else None
            self._line = position or self._line
            if step.opcode in dis.hasconst or step.opname == "LOAD_SMALL_INT":
                self._say(step.opname)
                if isinstance(step.argval, CodeType):
                    self._walk(step.argval)
                else:
                    self.constants.append((self._line, step.argval))
            else:
                self._say(f"{step.opname} {step.argval!r}")

    def _say(self, word: str) -> None:
        self._words.append(word.encode("utf-8", "surrogatepass"))
        if self.lines and self.lines[-1][0] == self._line:
            self.lines[-1] = self._line, joined("line", self.lines[-1][1], self._words[-1])[:4]
        else:
            self.lines.append((self._line, joined("line", self._words[-1])[:4]))


def same_code(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions have the same code (without file, lines and docstring), constants and defaults."""
    functions = inspect.unwrap(one), inspect.unwrap(other)
    if not all(isinstance(function, FunctionType) for function in functions):
        return one is other
    first, second = map(_code_and_values, functions)
    return first == second


def _code_and_values(function: Any) -> tuple[bytes, list[tuple[type, str]]]:
    found = CodeFingerprint(function.__code__)
    values = [*(value for _, value in found.constants), function.__defaults__, function.__kwdefaults__]
    return found.digest, [(type(value), repr(value)) for value in values]


# ---------------------------------------------------------------- arrays and tables


def _arrays(fingerprinter: Fingerprinter, value: Any) -> bytes | None:
    """The digest of an object of NumPy or pandas; None for all else."""
    if dataframes.is_a(value, "numpy", "ndarray", exact=True) or dataframes.is_a(value, "numpy", "memmap", exact=True):
        return _array(fingerprinter, value)
    if dataframes.is_a(value, "numpy", "generic"):
        if value.dtype.hasobject:
            return None
        return joined("scalar", value.dtype.str.encode(), value.tobytes())
    if dataframes.is_a(value, "pandas", "DataFrame", exact=True):
        columns = [value.iloc[:, position] for position in range(value.shape[1])]
        return joined("frame", *map(fingerprinter.of, (value.columns, value.index, value.attrs, *map(_bare, columns))))
    if dataframes.is_a(value, "pandas", "Series", exact=True):
        return joined("series", *map(fingerprinter.of, (value.name, value.index, value.attrs, _bare(value))))
    return _index(fingerprinter, value)


def _index(fingerprinter: Fingerprinter, value: Any) -> bytes | None:
    if dataframes.is_a(value, "pandas", "RangeIndex", exact=True):
        return joined("range", *map(fingerprinter.of, (value.start, value.stop, value.step, value.name)))
    if dataframes.is_a(value, "pandas", "MultiIndex", exact=True):
        return joined("levels", *map(fingerprinter.of, (list(value.names), value.to_list())))
    if dataframes.is_a(value, "pandas", "Index"):
        return joined("index", *map(fingerprinter.of, (type(value), value.name, _bare(value))))
    return None


def _array(fingerprinter: Fingerprinter, value: Any) -> bytes:
    import numpy as np

    head = [repr(value.dtype.descr).encode(), repr(value.shape).encode()]
    if value.dtype.hasobject:
        return joined("array", *head, fingerprinter.of(value.tolist()))
    whole = np.ascontiguousarray(value)
    data = whole.tobytes() if whole.nbytes < 1 << 20 else whole.reshape(-1).view("u1").data
    return joined("array", *head, data)


def _bare(column: Any) -> Any:
    """The values of a Series or Index: an array, or (dtype, categories, values) if NumPy has no such dtype."""
    dtype = column.dtype
    if dataframes.is_a(dtype, "numpy", "dtype"):
        return column.to_numpy()
    categories = getattr(dtype, "categories", None)
    known = None if categories is None else [categories.to_list(), bool(dtype.ordered)]
    return [str(dtype), known, column.astype(object).to_list()]
