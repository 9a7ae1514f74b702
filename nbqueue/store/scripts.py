"""Loads the Lua scripts and calls them.

A script's header names its arguments, and the loader turns the header into Lua locals, so that no script counts:

    -- ARGV: worker lease# queues...

gives `worker` (text), `lease` (a number), and `queues`, the position in ARGV of the first of the rest. Each script
gets one key, the prefix `P` of the namespace. It builds further keys from it: `K.b(batch)`, as keys.py spells them.
All share the hash tag of the namespace, so they lie in one slot of a cluster, and an ACL on the prefix covers them.

Where a script stops and says that there is more stands in MOST: scripts write `MOST.rows`, and the loader the number.

In front of each goes `_prelude.lua`, and what a line `-- WITH: dependents` names: `_dependents.lua`. After
`-- LATER: dependents -> drain fall` it becomes a function `later()` instead, which gives a table with these two: a
script that seldom needs it does not make all its functions on every call.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from nbqueue.store.keys import spelled

# No script goes on for long, or no other would have its turn: each says where it stopped, and is called again.
MOST = {
    "rows": 1_000,  # jobs of a batch, or holes between them
    "entries": 1_000,  # of the lists of queues, that a claim looks at
    "due": 100,  # things that are due
    "children": 100,  # batches that depend on one
    "touched": 5_000,  # jobs of batches that depend on one
}

_MOST = re.compile(r"\bMOST\.(\w+)")
_WITH = re.compile(r"^-- WITH: *(.*)$", re.MULTILINE)
_LATER = re.compile(r"^-- LATER: *(.*?) *-> *(.*)$", re.MULTILINE)
_ARGUMENTS = re.compile(r"^-- ARGV: *(.*)$", re.MULTILINE)

Argument = str | bytes | int | float


class Script(NamedTuple):
    """A script as it is sent."""

    name: str
    text: str
    sha: str


@cache
def load(name: str, *, stand_in: bool = False) -> Script:
    """The script of this verb, with its locals and the prelude; with `stand_in` for what only plays a server."""
    folder = files("nbqueue.store") / "lua"
    body = (folder / f"{name}.lua").read_text()
    shared = [*(["stand_in"] if stand_in else []), "prelude", *" ".join(_WITH.findall(body)).split()]
    before = [(folder / f"_{each}.lua").read_text() for each in shared]
    for files_of_it, names in _LATER.findall(body):
        texts = [(folder / f"_{each}.lua").read_text() for each in files_of_it.split()]
        exports = ",".join(f"{each}={each}" for each in names.split())
        before += ["local function later()", *texts, f"return {{{exports}}} end"]
    text = "local P=KEYS[1]\n" + spelled("\n".join((_locals(body), *before, body)))
    text = _MOST.sub(lambda use: str(MOST[use[1]]), text)
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - the name that Redis gives it


def _locals(body: str) -> str:
    lines = []
    words = " ".join(_ARGUMENTS.findall(body)).split()
    for position, word in enumerate(words, 1):
        if word.endswith("..."):
            lines.append(f"local {word[:-3]}={position}")
        elif word.endswith("#"):
            lines.append(f"local {word[:-1]}=tonumber(ARGV[{position}])")
        else:
            lines.append(f"local {word}=ARGV[{position}]")
    return "\n".join(lines)


def is_stand_in(client: Any) -> bool:
    """Whether a client reaches no server, but what plays one in somebody's tests."""
    kind = getattr(getattr(client, "connection_pool", None), "connection_class", None)
    return str(getattr(kind, "__module__", "")).startswith("fakeredis")


def run(client: Any, name: str, prefix: str, arguments: Iterable[Argument]) -> Any:
    """The answer of one script."""
    script = load(name, stand_in=is_stand_in(client))
    arguments = tuple(arguments)
    try:
        return client.execute_command("EVALSHA", script.sha, 1, prefix, *arguments)
    except NoScriptError:
        return client.execute_command("EVAL", script.text, 1, prefix, *arguments)


def run_many(client: Any, name: str, prefix: str, calls: Sequence[Sequence[Argument]]) -> list[Any]:
    """The answers of one script to many calls, in one round trip and in order; an error is an answer, too."""
    script = load(name, stand_in=is_stand_in(client))
    answers = _pipeline(client, script, prefix, calls)
    missed = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    while missed:
        # A server may forget its scripts at any moment: those that found none did nothing, and go again.
        client.execute_command("SCRIPT LOAD", script.text)
        for place, answer in zip(missed, _pipeline(client, script, prefix, [calls[i] for i in missed]), strict=True):
            answers[place] = answer
        missed = [place for place in missed if isinstance(answers[place], NoScriptError)]
    return answers


def _pipeline(client: Any, script: Script, prefix: str, calls: Sequence[Sequence[Argument]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for arguments in calls:
        pipeline.execute_command("EVALSHA", script.sha, 1, prefix, *arguments)
    return list(pipeline.execute(raise_on_error=False))
