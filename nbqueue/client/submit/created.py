"""A call that `Job.create` describes, and `Queue.enqueue_job` sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbqueue.client.calls.function import resolved
from nbqueue.client.lookup import job_meta
from nbqueue.client.session.batch_ref import BatchRef, Prepared
from nbqueue.client.session.session import Session
from nbqueue.client.state.batch_state import BatchState
from nbqueue.client.submit import options
from nbqueue.model import DEFAULT_QUEUE, JobMeta, Options, Spec, new_id


def created(
    session: Session,
    origin: str,
    func: Callable[..., Any] | str,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    typed: Mapping[str, Any],
) -> BatchRef:
    """A job that describes a call, for `enqueue_job`: as what has run in this process, no server knows it.

    Raises BadOption, BadInput.
    """
    given = {name: value for name, value in typed.items() if value is not None}
    home = origin or DEFAULT_QUEUE
    default = Options().replaced(queue=home, timeout=options.TIMEOUT, result_ttl=options.RESULT_TTL)
    said, (call, _, label) = default.replaced(**options.parse_for_queue(home, given)), resolved(func)
    spec = Spec(
        label=label,
        single=True,
        timeout=said.timeout if given.keys() & {"timeout", "job_timeout"} else None,
        result_ttl=said.result_ttl,
        failure_ttl=said.failure_ttl,
        description=said.description,
        retry=options.rerun(said.retry),
        repeat=options.rerun(said.repeat),
        depends_on=options.parents(said),
    )
    state = BatchState(said.job_id or new_id(label, 8), origin, "", spec, created_us=time.time_ns() // 1000)
    state.expect(1)
    state.inline.notes[0] = JobMeta(job_meta.plain(said.meta or {}))
    batch = BatchRef(session, state, spec, function=call, inline="collect")
    batch.unsent = Prepared(func, *options.explicit(args, kwargs), {**given, "ttl": said.ttl})
    return batch
