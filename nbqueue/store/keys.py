"""Every key, spelled once; the Lua scripts get their spelling from here.

All keys of a namespace begin with `{namespace}:`. The braces are a hash tag: a Redis Cluster keeps them in one slot.
In `SHAPES` a `*` stands for the one variable part.
"""

from __future__ import annotations

import re

from nbqueue.checks import check_name

SHAPES = {
    "queues": "queues",  # set: names of queues seen
    "workers": "workers",  # zset: worker -> end of its lease, in ms
    "later": "later",  # zset: "<what>:<batch>" -> when it is due, in us
    "batches": "batches",  # zset: batch -> when it expires, in us; +inf while it runs
    "pulse": "pulse",  # string: the last renew of anyone
    "epoch": "epoch",  # string: a random id of this server's life
    "suspended": "suspended",  # string: while it is there, claim gives nothing
    "room": "room",  # never exists: deleting it lets a script write on a full server
    "q": "q:*",  # list: batches of a queue that have jobs to hand out, rotated
    "front": "front:*",  # list: the same, served first and not rotated
    "open": "open:*",  # zset: batches of a queue that are not done -> when they were made, in us
    "ended": "ended:*",  # zset: done batches of a queue -> when they expire, in us; +inf while others need them
    "failed": "failed:*",  # zset: done batches of a queue with failed jobs -> when they expire, in us
    "tally": "tally:*",  # hash: a queue's counts by state; `version` counts the arrivals of work
    "slots": "slots:*",  # hash: worker -> its slots
    "bell": "bell:*",  # list of at most one token: wakes one idle worker
    "b": "b:*",  # hash: all that is small of a batch
    "w": "w:*",  # hash: what a worker is
    "held": "held:*",  # set: "<batch>:<index>" of the jobs that a worker holds
    "claim": "claim:*",  # string: a worker's last claim, as msgpack
    "mail": "mail:*",  # list: messages to a worker
    "log": "log:*",  # list: batches of one that ended, of a session
    "hint": "hint:*",  # channel: batches of a session in which something happened
    "name": "name:*",  # hash: signer -> the batch that bears the name
    # zset: worker that could not load a function -> when, in ms; ":<worker>" -> from when on it is final; for a minute
    "unfit": "unfit:*",
}

PARTS = {
    "fn": "string: the sealed function",
    "args": "hash: index -> sealed arguments",
    "again": "list: '<index> <attempt> <losses> <cap>', jobs handed back",
    "bad": "set: indexes of failed jobs",
    "run": "hash: index -> '<token> <attempt> <since us> <losses> <cap>'",
    "out": "hash: index -> outcome",
    "past": "hash: index -> withdrawn outcomes, each behind its length in 4 bytes; length 0 for one without a record",
    "tail": "hash: index -> sealed log tail",
    "log": "list: '<index>' ended, 'r<index>' withdrawn, 'c<lo>-<hi>' canceled from lo to hi - 1",
    "meta": "hash: index -> sealed meta",
    "skip": "set: indexes beyond the cursor that have an outcome already",
    "void": "set: indexes whose entry in `again` counts no more, since they have an outcome already",
    "redo": "set: indexes beyond the cursor that were withdrawn from `skip`",
    "used": "hash: index -> retries used; 'r<index>' -> repeats used",
    "park": "hash: index -> '<attempt> <losses> <cap>' of jobs that run again later",
    "echo": "hash: index -> sealed echoes of its callbacks",
    "marks": "string: 16 bytes a job, by which a named batch knows its arguments again",
    "waits": "hash: '<selector>:<allow>:<batch>' -> o open, m met, x failed; see _dependents.lua",
    "then": "zset, scores 0: '<selector>:<allow>:<batch>', what depends on this batch",
    "kin": "set: batches that depend on this one and are not done; while there are any it does not expire",
    "ready": "bitmap: jobs whose source has ended, or which ended before it",
    "fell": "set: indexes canceled one by one, because of what they depend on",
}

LINKS = ("waits", "then", "kin", "ready", "fell")  # parts that only dependents and their parents have

PERMANENT = frozenset({"queues", "workers", "later", "batches", "pulse", "epoch", "suspended"})
PERMANENT_BY_QUEUE = ("q:", "front:", "open:", "ended:", "failed:", "tally:")


class Keys:
    """The keys of one namespace: `keys.at("q", queue)`, `keys.part(batch, "out")`."""

    def __init__(self, namespace: str) -> None:
        self.namespace = check_name("namespace", namespace)
        self.prefix = f"{{{namespace}}}:"

    def at(self, shape: str, part: str = "") -> str:
        """The key of this shape."""
        return self.prefix + SHAPES[shape].replace("*", part)

    def part(self, batch: str, part: str) -> str:
        """The key of a part of a batch."""
        return f"{self.at('b', batch)}:{part}"

    def bell(self, queue: str) -> str:
        """Where a token appears when a queue has work for an idle worker."""
        return self.at("bell", queue)

    def mail(self, worker: str) -> str:
        """Where messages to a worker appear."""
        return self.at("mail", worker)

    def hint(self, session: str) -> str:
        """The channel that names a session's batches in which something happened."""
        return self.at("hint", session)


_USE = re.compile(r"\bK\.(\w+)(?:\(([\w.\[\]]+)\))?")
_SOUND = re.compile(r"\bsound\((\w+(?:\.\w+)?), '([a-z ]+)'\)")
_LENGTH = {"string": "STRLEN", "bitmap": "STRLEN", "hash": "HLEN", "list": "LLEN", "set": "SCARD", "zset": "ZCARD"}


def spelled(script: str) -> str:
    """A Lua script that says `K.workers` and `K.b(batch)`, with the keys that it means, and with `PARTS` and `LINKS`.

    Keys are written where they are used: a table of functions that make them took 9 us of each call, of the 41 us that
    a short script took. What has more than a name in its brackets becomes a function of its own in front.
    """
    left: dict[str, None] = {}

    def lengths(use: re.Match[str]) -> str:
        # Of a key that holds something else the length is an error, before anything of the batch was changed.
        batch, names = use.groups()
        kinds = {name: _LENGTH[re.split(r"\W", PARTS[name])[0]] for name in names.split()}
        return " ".join(f"call('{kind}',P..'b:'..{batch}..':{name}')" for name, kind in kinds.items())

    def key(use: re.Match[str]) -> str:
        name, part = use.groups()
        shape = SHAPES[name]
        if not shape.endswith("*"):
            return f"(P..'{shape}')"
        if part is not None:
            return f"(P..'{shape[:-1]}'..{part})"
        left[name] = None
        return f"K_{name}"

    text = _USE.sub(key, _SOUND.sub(lengths, script))
    lines = [f"local function K_{name}(x) return P..'{SHAPES[name][:-1]}'..x end" for name in left]
    own = ",".join(f"'{part}'" for part in PARTS if part not in LINKS)
    links = ",".join(f"'{part}'" for part in LINKS)
    tables = {"PARTS": own, "LINKS": links}
    lines += [f"local {name}={{{words}}}" for name, words in tables.items() if re.search(rf"\b{name}\b", text)]
    return "\n".join((*lines, text))
