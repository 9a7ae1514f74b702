"""Commands that act on jobs and workers: requeue, empty, cancel, stop, suspend, resume, shutdown."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nbqueue.checks import counted
from nbqueue.cli.server_options import Words, duration, reach, server_options, session
from nbqueue.errors import BadInput, NbqueueError

LISTED = 10  # batches or queues that one line names


def _all_queues(url: str | None, namespace: str | None, config: Path | None) -> list[str]:
    return sorted(reach(url, namespace, config).broker.queues())


def _known(names: tuple[str, ...], url: str | None, namespace: str | None, config: Path | None) -> list[str]:
    """These queues, or all. Raises BadInput for a queue that was never used."""
    known = _all_queues(url, namespace, config)
    if strange := [name for name in names if name not in known]:
        there = f"existing queues are {', '.join(known[:LISTED])}" if known else "no queue has been used yet"
        raise BadInput(message=f"There is no queue {strange[0]!r}: {there}. `nbqueue info` lists all.")
    return list(names) or known


def _each(names: tuple[str, ...], act: Callable[[str], Any]) -> int:
    """Calls `act` on each name, and goes on after errors; returns the number of errors."""
    failed = 0
    for name in names:
        try:
            act(name)
        except NbqueueError as why:
            failed += 1
            click.secho(f"nbqueue: {why}", fg="red", err=True)
    return failed


@click.command(short_help="Run failed or canceled jobs again.")
@click.argument("job_ids", nargs=-1)
@click.option("-q", "--queue", "queues", multiple=True, help="With --all: only this queue.")
@click.option("-a", "--all", "everything", is_flag=True, help="All failed jobs.")
@server_options
def requeue(
    job_ids: tuple[str, ...],
    *,
    queues: tuple[str, ...],
    everything: bool,
    url: str | None,
    namespace: str | None,
    config: Path | None,
) -> None:
    """Run failed or canceled jobs again: those of JOB_IDS, or with --all every failed one."""
    from nbqueue.client.job import Job
    from nbqueue.client.queue import Queue

    if bool(job_ids) == everything:
        raise BadInput(message="Name the jobs to requeue, or give --all (with --queue NAME for one queue only).")
    session(url, namespace, config)
    if everything:
        chosen = _known(queues, url, namespace, config)
        count, batches = 0, Counter[str]()
        for name in chosen:
            failed = Queue(name).failed
            batches.update(job.batch.name or job.batch.id for job in failed)
            count += failed.requeue()
        click.echo(f"{counted(count, 'job')} to run again" + _listed(batches))
        return

    def act(name: str) -> None:
        Job.fetch(name).requeue()
        click.echo(f"{name} runs again")

    sys.exit(bool(_each(job_ids, act)))


def _listed(batches: Counter[str]) -> str:
    """`: 200 of sweep, 3 of fit-7k2f and 8 of 8 others`."""
    first = batches.most_common(LISTED)
    names = ", ".join(f"{size:,} of {name}" for name, size in first)
    if others := len(batches) - len(first):
        names += f" and {batches.total() - sum(size for _, size in first):,} of {counted(others, 'other')}"
    return f": {names}" if names else ""


@click.command()
@click.argument("queues", nargs=-1, cls=Words)
@click.option("-a", "--all", "everything", is_flag=True, help="All queues.")
@server_options
def empty(
    queues: tuple[str, ...], *, everything: bool, url: str | None, namespace: str | None, config: Path | None
) -> None:
    """Cancel all jobs that wait in QUEUES. `nbqueue requeue` runs them after all."""
    from nbqueue.client.queue import Queue

    if bool(queues) == everything:
        raise BadInput(message="Name the queues to empty, or give --all.")
    session(url, namespace, config)
    for name in _known(queues, url, namespace, config):
        click.echo(f"{counted(Queue(name).empty(), 'job')} canceled in {name}")


@click.command(short_help="Cancel batches or jobs.")
@click.argument("ids", nargs=-1, required=True)
@click.option("--keep-running", is_flag=True, help="Do not stop running jobs.")
@server_options
def cancel(
    ids: tuple[str, ...], *, keep_running: bool, url: str | None, namespace: str | None, config: Path | None
) -> None:
    """Cancel batches or jobs: IDS are ids of either, or names of batches."""
    from nbqueue.client.api import attach
    from nbqueue.client.job import Job

    session(url, namespace, config)

    def act(name: str) -> None:
        if ":" in name:
            count = int(Job.fetch(name).cancel(running=not keep_running))
        else:
            count = attach(name).cancel(running=not keep_running)
        click.echo(f"{counted(count, 'job')} of {name} canceled")

    sys.exit(bool(_each(ids, act)))


@click.command(short_help="Stop running jobs.")
@click.argument("job_ids", nargs=-1, required=True)
@server_options
def stop(job_ids: tuple[str, ...], *, url: str | None, namespace: str | None, config: Path | None) -> None:
    """Stop running jobs: each of JOB_IDS ends as canceled."""
    from nbqueue.client.job import Job

    session(url, namespace, config)

    def act(name: str) -> None:
        if not Job.fetch(name).stop():
            raise BadInput(
                message=f"{name} is not running, so there is nothing to stop. `nbqueue cancel` cancels waiting jobs."
            )
        click.echo(f"{name} is names to stop")

    sys.exit(bool(_each(job_ids, act)))


@click.command(short_help="Tell workers to leave.")
@click.argument("workers", nargs=-1, required=True)
@server_options
def shutdown(workers: tuple[str, ...], *, url: str | None, namespace: str | None, config: Path | None) -> None:
    """Tell WORKERS (ids or names, as `nbqueue info` shows them) to finish their running jobs and exit."""
    from nbqueue.client.worker import Worker
    from nbqueue.errors import NoSuchWorker

    opened = session(url, namespace, config)

    def act(name: str) -> None:
        found = [worker for worker in Worker.all() if name in (worker.id, worker.name)]
        if not found:
            raise NoSuchWorker(name=name, server=opened.server)
        for worker in found:
            worker.shutdown()
            click.echo(f"{worker.id} is names to exit")

    sys.exit(bool(_each(workers, act)))


@click.command(short_help="Pause: running jobs finish, and no new ones start.")
@click.option("--duration", callback=duration, help="End the pause after this long, as 600, 10m or 2h.")
@server_options
def suspend(*, duration: float | None, url: str | None, namespace: str | None, config: Path | None) -> None:
    """Pause: workers finish running jobs and start no new ones. `nbqueue resume` ends the pause."""
    reach(url, namespace, config).broker.suspend(duration)
    until = "until `nbqueue resume`" if duration is None else f"for {duration:g} s"
    click.echo(f"paused {until}: running jobs finish, no new ones start")


@click.command(short_help="End the pause.")
@server_options
def resume(*, url: str | None, namespace: str | None, config: Path | None) -> None:
    """End the pause of `nbqueue suspend`: workers start jobs again."""
    reach(url, namespace, config).broker.resume()
    click.echo("workers start jobs again")
