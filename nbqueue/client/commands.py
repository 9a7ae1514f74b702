"""RQ's functions that take the id of a job or a worker: cancel, requeue, stop, shut down; suspend and resume all."""

from __future__ import annotations

from typing import Any

from nbqueue.checks import seconds
from nbqueue.client.job import Job
from nbqueue.client.session import session as sessions
from nbqueue.client.submit.submission import refuse_inside
from nbqueue.client.worker import Worker, WorkerHandle
from nbqueue.errors import NoSuchWorker
from nbqueue.store.broker import Broker


def cancel_job(
    job_id: str, connection: Any = None, *, enqueue_dependents: bool = False, namespace: str | None = None
) -> bool:
    """Cancels the job with this id, also while it runs; True: it was canceled. Raises NoSuchJob, Expired.

    With `enqueue_dependents` what depends on it runs all the same.
    """
    return Job.fetch(job_id, connection, namespace=namespace).cancel(enqueue_dependents=enqueue_dependents)


def requeue_job(job_id: str, connection: Any = None, *, namespace: str | None = None) -> Job[Any]:
    """Runs the job with this id again. Raises NoSuchJob, Expired, BadInput while it has not ended."""
    return Job.fetch(job_id, connection, namespace=namespace).requeue()


def send_stop_job_command(connection: Any, job_id: str, *, namespace: str | None = None) -> bool:
    """Tells the worker that runs a job to stop it; False where it does not run. Raises NoSuchJob, Expired."""
    return Job.fetch(job_id, connection, namespace=namespace).stop()


def send_shutdown_command(connection: Any, worker_name: str, *, namespace: str | None = None) -> None:
    """Tells the workers of this name or id to finish what they run and leave. Raises NoSuchWorker."""
    for each in _workers(connection, worker_name, namespace):
        each.shutdown()


def send_kill_horse_command(connection: Any, worker_name: str, *, namespace: str | None = None) -> None:
    """Tells the workers of this name or id to kill what runs there, which fails as in a crash. Raises NoSuchWorker."""
    for each in _workers(connection, worker_name, namespace):
        each.kill_horse()


def _workers(connection: Any, name: str, namespace: str | None) -> list[WorkerHandle]:
    named = [each for each in Worker.all(connection, namespace=namespace) if name in (each.id, each.name)]
    if not named:
        raise NoSuchWorker(name=name, server=sessions.of(connection, namespace).server)
    return named


def suspend(connection: Any = None, ttl: Any = None, *, namespace: str | None = None) -> None:
    """Lets no worker begin another job, for `ttl` seconds or until `resume`; what runs, runs on. Raises BadOption."""
    refuse_inside("suspend")
    lasting = None if ttl is None else seconds("ttl", ttl)
    sessions.of(connection, namespace).ask(Broker.suspend, lasting)


def resume(connection: Any = None, *, namespace: str | None = None) -> None:
    """Lets the workers go on after `suspend`."""
    refuse_inside("resume")
    sessions.of(connection, namespace).ask(Broker.resume)


def is_suspended(connection: Any = None, *, namespace: str | None = None) -> bool:
    """Whether the workers are suspended."""
    return sessions.of(connection, namespace).ask(Broker.suspended) is not None
