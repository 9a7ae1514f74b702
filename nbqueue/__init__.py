"""nbqueue runs a function over a list of inputs, from a notebook, on any number of machines that can reach one Redis.

A job lives in three places: the notebook that asks (`client/`), the memory between (`store/`), the hands that do
(`worker/`). This is its journey:

    client/api.py      map()       a function and its items become one batch of jobs
    wire.py            seal()      function and arguments become signed bytes
    store/broker.py    submit()    lua/submit.lua
    ------------------------------ Redis ------------------------------
    store/broker.py    claim()     lua/claim.lua
    worker/parent.py   run()       holds the lease, speaks to Redis, never runs user code
    worker/stable.py   serve()     has loaded one function; forks a horse for every job; keeps the clock
    worker/horse.py    ride()      the child: the call, and whatever happens becomes an Outcome
    store/broker.py    settle()    lua/settle.lua, by the parent only, fenced by the claim
    client/batch.py    to_frame()  and the bar moves
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbqueue.client.api import attach, batches, connect, gather, grid, local, map, options, starmap, submit  # noqa: A004
    from nbqueue.client.batch import Batch
    from nbqueue.client.commands import (
        cancel_job,
        is_suspended,
        requeue_job,
        resume,
        send_kill_horse_command,
        send_shutdown_command,
        send_stop_job_command,
        suspend,
    )
    from nbqueue.client.decorator import job
    from nbqueue.client.job import Job
    from nbqueue.client.queue import Queue
    from nbqueue.client.worker import SimpleWorker, Worker
    from nbqueue.current import get_current_job, progress, rng
    from nbqueue.errors import (
        BatchFailed,
        Expired,
        InsideJob,
        JobCanceled,
        JobFailed,
        JobTimeout,
        NbqueueError,
        NotDone,
    )
    from nbqueue.model import State, Tally
    from nbqueue.policies import Callback, Dependency, Repeat, Retry

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchFailed",
    "Callback",
    "Dependency",
    "Expired",
    "InsideJob",
    "Job",
    "JobCanceled",
    "JobFailed",
    "JobTimeout",
    "NbqueueError",
    "NotDone",
    "Queue",
    "Repeat",
    "Retry",
    "SimpleWorker",
    "State",
    "Tally",
    "Worker",
    "attach",
    "batches",
    "cancel_job",
    "connect",
    "gather",
    "get_current_job",
    "grid",
    "is_suspended",
    "job",
    "local",
    "map",
    "options",
    "progress",
    "requeue_job",
    "resume",
    "rng",
    "send_kill_horse_command",
    "send_shutdown_command",
    "send_stop_job_command",
    "starmap",
    "submit",
    "suspend",
]

_HOMES = {
    "Batch": "client.batch",
    "Job": "client.job",
    "Queue": "client.queue",
    "job": "client.decorator",
    **dict.fromkeys(
        (
            "cancel_job",
            "is_suspended",
            "requeue_job",
            "resume",
            "send_kill_horse_command",
            "send_shutdown_command",
            "send_stop_job_command",
            "suspend",
        ),
        "client.commands",
    ),
    **dict.fromkeys(("State", "Tally"), "model"),
    **dict.fromkeys(("SimpleWorker", "Worker"), "client.worker"),
    **dict.fromkeys(("Callback", "Dependency", "Repeat", "Retry"), "policies"),
    **dict.fromkeys(("get_current_job", "progress", "rng"), "current"),
    **dict.fromkeys(
        (
            "BatchFailed",
            "Expired",
            "InsideJob",
            "JobCanceled",
            "JobFailed",
            "JobTimeout",
            "NbqueueError",
            "NotDone",
        ),
        "errors",
    ),
    **dict.fromkeys(
        ("attach", "batches", "connect", "gather", "grid", "local", "map", "options", "starmap", "submit"), "client.api"
    ),
}


def __getattr__(name: str) -> Any:
    """Names are looked up when first used, so that a stable that imports a submodule stays lean."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nbqueue' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"nbqueue.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
