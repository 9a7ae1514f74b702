"""What Broker and Reads share: the connection, the keys, and the way to a script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from nbqueue.errors import Damaged, ServerRefused
from nbqueue.store import scripts
from nbqueue.store.connection import Connection, is_damage, is_wrong_type
from nbqueue.store.keys import Keys
from nbqueue.store.scripts import Argument

FIELDS = 1_000
BYTES = 4 << 20

T = TypeVar("T")


class Door:
    """One namespace on one server."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self.connection = connection
        self.client = connection.client
        self.url = connection.url
        self.namespace = namespace
        self.keys = Keys(namespace)

    def _run(self, verb: str, *arguments: Argument) -> Any:
        with self.connection.errors():
            return scripts.run(self.client, verb, self.keys.prefix, arguments)

    def _run_on(self, verb: str, *arguments: Argument) -> Any:
        """As _run, about one batch, its first argument. Raises Damaged where its keys are not as we wrote them."""
        try:
            return self._run(verb, *arguments)
        except ServerRefused as why:
            if why.facts.get("kind") or not is_damage(why.__cause__):
                raise
            raise Damaged(what=f"What the store keeps of {arguments[0]!s}", why=str(why.__cause__)) from why

    def _run_many(self, verb: str, calls: Sequence[Sequence[Argument]], *, each: bool = False) -> list[Any]:
        """The answers of a script to many calls, each about one batch.

        With `each`, a batch whose keys are not as we wrote them has Damaged as its answer, and spares the others.
        """
        with self.connection.errors():
            answers = scripts.run_many(self.client, verb, self.keys.prefix, calls)
            for place, answer in enumerate(answers):
                if each and is_damage(answer):
                    answers[place] = Damaged(what="What the store keeps of a batch", why=str(answer))
                elif isinstance(answer, Exception):
                    raise answer
            return answers

    def _read(self, commands: Iterable[tuple[Argument, ...]], *, each: bool = False) -> list[Any]:
        """The answers to plain commands, in one round trip.

        With `each`, a key that holds something else than it should has Damaged as its answer, and spares the others.
        """
        # No MULTI: a full server refuses whatever comes in one, reads too.
        with self.connection.errors():
            pipeline: Any = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers = list(pipeline.execute(raise_on_error=False))
            for place, answer in enumerate(answers):
                if each and is_wrong_type(answer):
                    answers[place] = Damaged(what="A key of a batch", why="it holds something else")
                elif isinstance(answer, Exception):
                    raise answer
            return answers


def parts(items: Sequence[T], sizes: Iterable[int]) -> Iterator[Sequence[T]]:
    """`items` in runs of at most 1,000 and 4 MB (or one item)."""
    start, weight = 0, 0
    for place, size in enumerate(sizes):
        if place > start and (place - start >= FIELDS or weight + size > BYTES):
            yield items[start:place]
            start, weight = place, 0
        weight += size
    if start < len(items):
        yield items[start:]


def loads_of(calls: Sequence[list[Argument]]) -> Iterator[Sequence[list[Argument]]]:
    """Calls of a script in runs that one pipeline may carry."""
    return parts(calls, (sum(len(a) if isinstance(a, str | bytes) else 8 for a in call) for call in calls))
