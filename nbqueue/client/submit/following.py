"""`batch.then(g)`: job i of a new batch runs with the result of job i, as soon as that one has finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbqueue.client.calls import items
from nbqueue.client.calls.function import DescribedFunction
from nbqueue.client.calls.items import Calls
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.client.submit import options as terms
from nbqueue.client.submit import reattach
from nbqueue.client.submit.submission import SubmitPlan, refuse_inside
from nbqueue.errors import BadOption
from nbqueue.model import Options


def then(source: BatchRef, function: Callable[..., Any] | str, typed: dict[str, Any]) -> BatchRef:
    """One job for each job of `source`; a single one for a single one. Raises BadOption or BadInput."""
    refuse_inside("then")
    if strange := sorted(typed.keys() - terms.OPTION_NAMES):
        raise BadOption(
            message=f"then() has no option {strange[0]!r}. A keyword for the function goes in with "
            f"functools.partial: then(functools.partial(f, {strange[0]}=...))."
        )
    terms.check_clash("then", function, typed)
    options = Options(queue=source.queue).replaced(**terms.parse(typed))
    if not source.single:
        terms.check_for_many(options, "batch.then")

    def calls(described: DescribedFunction) -> Calls:
        terms.check_clash("then", described, typed)
        names = items.positional(described) or ("arg_0",)
        return Calls((), None, names, source.spec.labeled, source.spec.index_names)

    return reattach.submit(SubmitPlan(source.session, options, function, calls, single=source.single, source=source))
