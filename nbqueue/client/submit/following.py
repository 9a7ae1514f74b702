"""`batch.then(g)`: job i of a new batch runs with the result of job i, as soon as that one has finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbqueue.client.calls import items
from nbqueue.client.calls.function import DescribedFunction
from nbqueue.client.calls.items import Calls
from nbqueue.client.session.batch_ref import BatchRef, JobRef
from nbqueue.client.submit import options as terms
from nbqueue.client.submit import reattach
from nbqueue.client.submit.submission import SubmitPlan, refuse_inside
from nbqueue.errors import BadInput, BadOption
from nbqueue.model import Options


def batch(source: BatchRef, function: Callable[..., Any] | str, typed: dict[str, Any]) -> BatchRef:
    """One job for each job of `source`. Raises BadOption or BadInput."""
    return _follow("then", source, function, typed, single=source.single)


def job(source: JobRef, function: Callable[..., Any] | str, typed: dict[str, Any]) -> JobRef:
    """One job for a single one. Raises BadOption or BadInput."""
    if not source.batch.single:
        raise BadInput(
            message=f"{source.id} is part of a batch: batch.then(f) runs f on the results of all of it, job by job."
        )
    return _follow("then", source.batch, function, typed, single=True).job(0)


def _follow(
    verb: str, source: BatchRef, function: Callable[..., Any] | str, typed: dict[str, Any], *, single: bool
) -> BatchRef:
    refuse_inside(verb)
    if strange := sorted(typed.keys() - terms.WORDS):
        raise BadOption(
            message=f"{verb}() has no option {strange[0]!r}. A keyword for the function goes in with "
            f"functools.partial: {verb}(functools.partial(f, {strange[0]}=...))."
        )
    terms.refuse_clash(verb, function, typed)
    options = Options(queue=source.queue).replaced(**terms.understood(typed))
    if not single:
        terms.refuse_for_many(options, f"batch.{verb}")

    def calls(described: DescribedFunction) -> Calls:
        terms.refuse_clash(verb, described, typed)
        names = items.positional(described) or ("arg_0",)
        return Calls((), None, names, source.spec.labeled, source.spec.index_names)

    return reattach.submit(SubmitPlan(source.session, options, function, calls, single=single, source=source))
