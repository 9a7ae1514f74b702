"""Describing how a function changed between two sessions: code, constants, defaults, globals.

A fingerprint of each piece of the function is stored with it, under its signature. Values of a few characters are
stored as text, all others as digests only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from nbqueue import settings
from nbqueue.client.calls import closures
from nbqueue.client.calls.fingerprint import CodeFingerprint, Fingerprinter, NotComparable, joined, members, plain, used
from nbqueue.model import FunctionFingerprint, FunctionRecord, Part

MAX_SHOWN = 40  # characters of a value that is shown
MOST = 2_000  # functions and classes that are compared piece by piece
SHOWN_CHANGES = 4  # changes that are described


def fingerprint_of(call: Callable[..., Any] | None, name: str) -> FunctionFingerprint:
    """The fingerprint of `call`; of its `name` only, if the function is not here."""
    parts: dict[str, Part] = {}
    lines: dict[str, tuple[tuple[int, bytes], ...]] = {}
    if call is None:
        parts["named"] = Part(joined("named", name.encode()), name)
    else:
        _Walk(call, parts, lines).all()
    return FunctionFingerprint(settings.python_version(), parts, lines)


class _Walk:
    """Walks through all functions and classes that a function uses, and fingerprints the pieces of each."""

    def __init__(self, call: Any, parts: dict[str, Part], lines: dict[str, tuple[tuple[int, bytes], ...]]) -> None:
        self._parts, self._lines = parts, lines
        self._fingerprinter = Fingerprinter()
        self._titles: dict[int, str] = {}
        self._waiting: list[tuple[str, Any]] = []
        self._enter("", call)

    def all(self) -> None:
        """Fills the record."""
        done = 0
        while done < len(self._waiting) and done < MOST:
            title, thing = self._waiting[done]
            done += 1
            for label, value in self._inside(title, thing):
                self._enter(f"{label}\0{title}", value)

    def _inside(self, title: str, thing: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(thing, functools.partial):
            yield "function", thing.func
            yield from ((f"argument {position}", value) for position, value in enumerate(thing.args))
            yield from ((f"argument {name}", value) for name, value in sorted(thing.keywords.items()))
        elif isinstance(thing, MethodType):
            yield "object self", thing.__self__
            yield "function", thing.__func__
        elif isinstance(thing, type):
            yield from ((f"base {base.__name__}", base) for base in thing.__bases__)
            yield from ((f"member {name}", _bare(member)) for name, member in members(thing))
        else:
            self._code(title, thing)
            yield from used(thing)

    def _code(self, title: str, function: FunctionType) -> None:
        code = CodeFingerprint(function.__code__)
        self._parts[f"code\0{title}"] = Part(code.digest)
        self._lines[title] = tuple(code.lines)
        for position, (line, value) in enumerate(code.constants):
            self._parts[f"constant {position}\0{title}"] = self._part(value, line)

    def _enter(self, label: str, value: Any) -> None:
        role, _, title = label.partition("\0")
        if not _opens(value):
            self._parts[label] = self._part(value)
            if label and closures.by_value(type(value)):
                self._enter(f"type {role.partition(' ')[2]}\0{title}", type(value))
            return
        known = self._titles.get(id(value))
        if known is None and not label:
            known = self._titles[id(value)] = ""
            self._waiting.append(("", value))
        elif known is None:
            own = getattr(value, "__name__", None) or type(value).__name__
            known = f"{title}.{own}" if role.startswith("member") else own if own != "<lambda>" else "the lambda"
            while known in self._titles.values():
                known += "'"  # a second function of this name
            self._titles[id(value)] = known
            self._waiting.append((known, value))
        if label:
            self._parts[label] = Part(joined("unit", known.encode()))

    def _part(self, value: Any, line: int = 0) -> Part:
        text = plain(value)
        shown = "" if text is None or len(text) > MAX_SHOWN else text.decode("utf-8", "replace")
        try:
            digest = self._fingerprinter.of(value)
        except NotComparable as why:
            return Part(b"", str(why)[:200], line)
        return Part(digest, shown, line)


def _opens(value: Any) -> bool:
    """Whether its pieces are fingerprinted: code that is pickled by value."""
    if isinstance(value, functools.partial | MethodType):
        return True
    return isinstance(value, FunctionType | type) and closures.by_value(value)


def _bare(member: Any) -> Any:
    return member.__func__ if isinstance(member, staticmethod | classmethod) else member


# ---------------------------------------------------------------- what has changed


def differences(old: FunctionRecord, new: FunctionRecord, old_seed: int | None, new_seed: int | None) -> list[str]:
    """How function and seed differ from those of the batch, as `the function changed (line 5 of helper: 1 -> 2)`."""
    named = describe_changes(old, new)
    found = [f"the function changed ({'; '.join(named)})"] if named else []
    return found + ([f"the seed changed: {old_seed} -> {new_seed}"] if new_seed not in {None, old_seed} else [])


def describe_changes(old: FunctionRecord, new: FunctionRecord) -> list[str]:
    """Descriptions of the changes between two functions. What cannot be compared counts as changed."""
    was, now = old.likeness, new.likeness
    if was is None or now is None:
        return ["the earlier function was not recorded"]
    if was.python != now.python:
        return [f"Python {was.python} became {now.python}, and their bytecode cannot be compared"]
    if ("" in was.parts) != ("" in now.parts) or ("" in was.lines) != ("" in now.lines):
        return ["it is another function"]
    found = [_module(name, old.modules, new.modules) for name in _differing(old.modules, new.modules)]
    titles = {title for role, title in map(_split, _differing(was.parts, now.parts)) if role == "code"}
    for label in _differing(was.parts, now.parts):
        role, title = _split(label)
        if title in titles and (role.startswith("constant") or label not in was.parts or label not in now.parts):
            continue  # the change of the code covers it
        if title in _gone(was, now):
            continue
        found.append(_words(role, title, label, was, now))
    named = list(dict.fromkeys(found))
    named = [
        each for each in named if "`_" not in each
    ] or named  # names with an underscore are made by Python from the others
    return named[:SHOWN_CHANGES] + ([f"and {len(named) - SHOWN_CHANGES} more"] if len(named) > SHOWN_CHANGES else [])


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        one, other = old.get(name), new.get(name)
        if isinstance(one, Part) and isinstance(other, Part):
            same = bool(one.digest) and one.digest == other.digest
        else:
            same = one == other
        if not same:
            found.append(name)
    return found


def _gone(was: FunctionFingerprint, now: FunctionFingerprint) -> set[str]:
    """Functions that only one of both has: the change of their caller is described instead."""
    return was.lines.keys() ^ now.lines.keys()


def _split(label: str) -> tuple[str, str]:
    role, _, title = label.partition("\0")
    return role, title


def _module(name: str, old: dict[str, str], new: dict[str, str]) -> str:
    if name not in old:
        return f"the module {name} is used now"
    return f"the module {name} changed" if name in new else f"the module {name} is no longer used"


_NOUNS = {
    "default": "the default of `{}`",
    "closure": "the captured variable `{}`",
    "global": "the global `{}`",
    "attribute": "the attribute `{}`",
    "argument": "the bound argument `{}`",
    "object": "the object that the method is bound to",
    "type": "the class of `{}`",
    "member": "the member `{}`",
    "base": "the base class `{}`",
}


def _words(role: str, title: str, label: str, was: FunctionFingerprint, now: FunctionFingerprint) -> str:
    old, new = was.parts.get(label), now.parts.get(label)
    noun, _, name = role.partition(" ")
    where = f" of {title}" if title else ""
    if noun == "code":
        line = _line(was.lines.get(title, ()), now.lines.get(title, ()))
        return f"the code{where} changed" + (f" in line {line}" if line else "")
    if noun == "constant" and old is not None and new is not None:
        position = f"line {new.line}{where}" if new.line else f"a constant{where}"
        return (
            f"{position}: {old.shown} -> {new.shown}"
            if old.shown and new.shown and new.digest
            else f"{position} changed"
        )
    what = _NOUNS.get(noun, "the function").format(name) + where
    if old is None or new is None:
        return f"{what} is {'new' if old is None else 'no longer used'}"
    if not old.digest or not new.digest:
        return f"{what} cannot be compared ({new.shown if not new.digest else old.shown})"
    return f"{what}: {old.shown} -> {new.shown}" if old.shown and new.shown else f"{what} changed"


def _line(old: tuple[tuple[int, bytes], ...], new: tuple[tuple[int, bytes], ...]) -> int:
    """The first line of the new code with different instructions; 0 if the new code is only shorter."""
    was = [digest for _, digest in old]
    for position, (line, digest) in enumerate(new):
        if position >= len(was) or was[position] != digest:
            return line
    return 0
