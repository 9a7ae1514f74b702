"""Garbage in the place of what nbqueue wrote: of the right type of Redis, and of the wrong ones."""

from __future__ import annotations

import os

from nbqueue.store.keys import PARTS

JUNK = b"\xff\xfe|not ours"
KINDS = {
    "string": lambda client, key: client.set(key, JUNK),
    "list": lambda client, key: client.rpush(key, JUNK, b""),
    "hash": lambda client, key: client.hset(key, mapping={b"0": JUNK, b"1": b"", JUNK: b"1"}),
    "set": lambda client, key: client.sadd(key, JUNK, b"7"),
    "zset": lambda client, key: client.zadd(key, {JUNK: 1}),
}
FIELDS = [
    "n", "cur", "nrun", "nfin", "nfail", "ncan", "ndef", "npark", "queue", "session", "spec", "key", "signer", "python",
    "host", "rttl", "fttl", "ttl", "cuts", "hold", "due", "queued", "created", "done", "exp", "src", "needs", "deps",
    "big", "open", "cut", "inq", "name", "single", "nonce", "nopen", "nbad", "fell", "meta",
]  # fmt: skip
VALUES = (JUNK, b"9" * 40, b"-5")
ALL = os.environ.get("NBQUEUE_TEST_PROFILE") == "long"  # else half of all ways, of each key and field some


def key(client, name, kind):
    """Puts garbage of this type at a key."""
    client.delete(name)
    KINDS[kind](client, name)


def ways(broker):
    """Every way in which one batch can be spoiled, by name: a function of its id."""
    client, keys = broker.client, broker.keys
    found = {}
    for part in PARTS:
        own = PARTS[part].partition(":")[0]
        for kind in KINDS if ALL else (own if own in KINDS else "string", "zset" if own != "zset" else "hash"):
            found[f"{part} {kind}"] = lambda batch, part=part, kind=kind: key(client, keys.part(batch, part), kind)
    for field in FIELDS:
        for place, value in enumerate(VALUES if ALL else VALUES[: 2 if field in {"n", "cur", "nrun"} else 1]):
            found[f"field {field} {place}"] = lambda batch, field=field, value=value: client.hset(
                keys.at("b", batch), field, value
            )
    for kind in KINDS:
        found[f"b {kind}"] = lambda batch, kind=kind: key(client, keys.at("b", batch), kind)
    return found
