"""What is pickled with a function: globals, closures and bound arguments; and the modules that its code imports."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Collection, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from nbqueue import wire
from nbqueue.checks import size_text
from nbqueue.client.calls import modules

_HEAP = 1 << 9  # flag of classes that were made by a class statement, and not in C
MOST = 20_000  # objects visited; a larger graph is data, not code


def by_value(thing: Any) -> bool:
    """Whether a function or class is pickled by value: defined in a notebook, a script or a function, or registered."""
    if isinstance(thing, type) and not thing.__flags__ & _HEAP:
        return False  # a built-in class, though some of them cannot be imported by name
    return not wire.by_reference(thing)


class CaptureWalk:
    """A walk over everything that is pickled by value with `function`.

    `captured`: name -> value of the data found (neither modules nor code). `modules`: names of modules to check.
    `codes`: the code of the functions found. `imports`: modules named by import statements inside these functions, and
    inside functions of the user's modules that they call. `whole`: whether a function or class is pickled by value.
    """

    def __init__(self, function: Any) -> None:
        self.captured: dict[str, Any] = {}
        self.modules: set[str] = set()
        self.codes: list[CodeType] = []
        self.imports: set[str] = set()
        self.whole = False
        self._read: set[CodeType] = set()
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # keeps objects alive: ids must stay unique
        waiting: list[tuple[str, Any]] = [("", function)]
        while waiting and len(self._seen) < MOST:
            name, thing = waiting.pop()
            if id(thing) not in self._seen:
                self._seen.add(id(thing))
                self._kept.append(thing)
                waiting += self._visit(name, thing)

    def _visit(self, name: str, thing: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(thing, ModuleType):
            self.modules.add(thing.__name__)
        elif isinstance(thing, MethodType):
            yield name or "self", thing.__self__
            yield "", thing.__func__
        elif isinstance(thing, functools.partial):
            yield "", thing.func
            yield from ((f"argument {position}", value) for position, value in enumerate(thing.args))
            yield from thing.keywords.items()
        elif isinstance(thing, (FunctionType, type, wire.CACHED)):
            yield from self._code(thing)
        elif not (isinstance(thing, BuiltinFunctionType) or wire.is_shell(thing)):
            if name:
                self.captured.setdefault(name, thing)
            yield "", type(thing)

    def _code(self, thing: Any) -> Iterator[tuple[str, Any]]:
        if not by_value(thing):
            self.modules.add(thing.__module__)
            self._by_reference(thing)
            return
        self.whole = True
        if isinstance(thing, type):
            yield from (("", base) for base in thing.__bases__)
            yield from _members(thing)
        elif isinstance(thing, FunctionType):
            yield from self._function(thing)
        else:
            yield "", thing.__wrapped__

    def _by_reference(self, thing: Any) -> None:
        """Collects what a function of a user's module imports when called, and what the functions it names import."""
        waiting = [thing]
        while waiting:
            function = inspect.unwrap(waiting.pop())
            if not isinstance(function, FunctionType) or function.__code__ in self._read:
                continue
            self._read.add(function.__code__)
            if modules.user_file(function.__module__ or "") is None:
                continue
            names, imports = names_of(function.__code__)
            self.imports |= imports
            waiting += [function.__globals__[name] for name in names if name in function.__globals__]

    def _function(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        if wrapped := getattr(function, "__wrapped__", None):
            yield "", wrapped
        self.codes.append(function.__code__)
        names, imports = names_of(function.__code__)
        self.modules |= imports
        self.imports |= imports
        yield from ((name, function.__globals__[name]) for name in names if name in function.__globals__)
        yield from wire.closed_over(function)
        for value in [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]:
            yield "a default", value


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(cls).items():
        if isinstance(member, staticmethod | classmethod):
            yield "", member.__func__
        elif isinstance(member, property):
            yield from (("", one) for one in (member.fget, member.fset, member.fdel) if one)
        elif not name.startswith("__") or isinstance(member, FunctionType):
            yield name, member


@functools.lru_cache(maxsize=1024)
def names_of(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(globals that it loads, modules that it may import) of a code object and of those inside it.

    Relative imports are left out: the bytecode does not name their package.
    """
    names, imports = set[str](), set[str]()
    package, before = "", (0, 0)  # operands of the two instructions before: an import's level and names
    for step in dis.get_instructions(code):
        if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            names.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            package = "" if before[0] else step.argval
            imports.add(package)
        elif step.opname == "IMPORT_FROM" and package:
            imports.add(f"{package}.{step.argval}")
        if step.opname != "EXTENDED_ARG":
            before = before[1], step.argval
    imports.discard("")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            more_names, more_imports = names_of(constant)
            names |= more_names
            imports |= more_imports
    return frozenset(names), frozenset(imports)


def imports_of(call: Any, reach: CaptureWalk) -> set[str]:
    """The modules that the function will import when it is called, as far as its code shows."""
    found, codes = set(reach.imports), reach.codes
    known = codes or [code for code in [getattr(inspect.unwrap(call), "__code__", None)] if code is not None]
    if any(_mentions(code, "rng") for code in known):
        found.add("numpy.random")  # nbqueue.rng() imports it
    return found


def importable(names: set[str], own: Collection[str]) -> tuple[str, ...]:
    """The modules that may be imported before the first call, parents first; `own` are pinned modules of the user.

    Other modules of the user may change before the next call, which would then run the old code.
    """
    return tuple(sorted(name for name in names if all(_settled(each, own) for each in modules.line(name))))


def _settled(name: str, own: Collection[str]) -> bool:
    return name in own or modules.user_file(name) is None


@functools.lru_cache(maxsize=1024)
def _mentions(code: CodeType, name: str) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return name in code.co_names or any(_mentions(each, name) for each in inner)


def largest(captured: dict[str, Any], floor: int) -> str:
    """The captured names over `floor` bytes, largest first, as `df 2.0 GB, model 300 MB`."""
    sizes = sorted(((size_of(value), name) for name, value in captured.items()), reverse=True)
    shown = [f"{name} {size_text(size)}" for size, name in sizes[:5] if size > floor]
    return ", ".join(shown)


def size_of(value: Any) -> int:
    """Approximate bytes of `value` when pickled; 0 if it cannot be pickled."""
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int) and nbytes > 1 << 20:
        return nbytes
    try:
        return wire.measured(value)
    except Exception:  # noqa: BLE001 - pickling may raise anything; the error is reported elsewhere, only the size matters here
        return 0
