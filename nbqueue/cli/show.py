"""`nbqueue show ID`: the details of a job or a batch. User data is unpickled on request only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nbqueue.checks import inert
from nbqueue.cli.server_options import console, print_json, server_options, session
from nbqueue.client.lookup import find
from nbqueue.errors import NoSuchJob
from nbqueue.model import utc

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch
    from nbqueue.store.records import BatchView


@click.command(short_help="Show a job or a batch: state, errors, output.")
@click.argument("job_id", metavar="ID")
@click.option("--args", "with_args", is_flag=True, help="Show its arguments too (unpickles them).")
@click.option("--result", "with_result", is_flag=True, help="Show its result too (unpickles it).")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@server_options
def show(
    job_id: str,
    *,
    with_args: bool,
    with_result: bool,
    as_json: bool,
    url: str | None,
    namespace: str | None,
    config: Path | None,
) -> None:
    """Show a job: its state, times, output and traceback. Or a batch, and its failed jobs.

    ID is the id of a job or a batch, or the name of a batch.
    """
    from nbqueue.client.batch import Batch
    from nbqueue.client.job import Job

    opened = session(url, namespace, config)
    try:
        job = Job.fetch(job_id)
    except NoSuchJob:
        if (view := None if ":" in job_id else find.view_named(opened, job_id)) is None:
            raise
        facts, texts = _batch(Batch(find.handle(opened, view)), view)
    else:
        facts, texts = _facts(job), _texts(job)
        if with_args:
            facts["arguments"] = job.call_string
        if with_result and job.is_finished:
            facts["result"] = repr(job.result)
    if as_json:
        print_json({**facts, **texts})
        return
    _print(facts, texts)


def _batch(batch: Batch[Any], view: BatchView) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts and texts of a batch."""
    facts = {
        "batch": batch.id,
        "name": view.name,
        "function": batch.ref.spec.label,
        "queue": batch.queue,
        "jobs": f"{view.n:,}: {view.tally}",
        "created": utc(view.created_us),
        "ended": None if view.done_us is None else utc(view.done_us),
        "kept until": None if view.expires_us is None else utc(view.expires_us),
        "seed": batch.seed,
        "owner": batch.ref.spec.owner,
    }
    texts = {"failed": repr(batch.failed)} if view.tally.failed else {}
    return {name: value for name, value in facts.items() if value is not None}, texts


def _facts(job: Any) -> dict[str, Any]:
    """One-line facts; unknown ones are left out."""
    facts = {
        "job": job.id,
        "function": job.func_name,
        "description": job.description if job.description != job.func_name else None,
        "queue": job.origin,
        "status": str(job.status),
        "cause": str(job.cause) if job.cause else None,
        "error": job.error or None,
        "depends on": ", ".join(job.dependency_ids) or None,
        "created": job.created_at,
        "due": job.due_at,
        "enqueued": job.enqueued_at,
        "started": job.started_at,
        "ended": job.ended_at,
        "attempt": job.attempt or None,
        **_spent(job.outcome),
        "worker": job.worker_name or None,
        "meta": job.meta or None,
        "progress": job.progress,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _spent(outcome: Any) -> dict[str, Any]:
    """Resources, host and exit code of a run."""
    if outcome is None or not outcome.worker:
        return {}
    return {
        "ran": f"{outcome.runtime_us / 1e6:.3f} s" if outcome.runtime_us else None,
        "CPU": f"{outcome.cpu_us / 1e6:.3f} s" if outcome.runtime_us else None,
        "peak memory": f"{outcome.max_rss_kb / 1024:,.0f} MB" if outcome.max_rss_kb else None,
        "exit code": outcome.code,
        "host": outcome.host or None,
    }


def _texts(job: Any) -> dict[str, str]:
    """Texts of several lines."""
    echoes = [f"{echo.hook} {echo.label}: {echo.failure}" for echo in job.echoes if echo.failure is not None]
    texts = {"traceback": job.exc_info or "", "callbacks that failed": "\n".join(echoes), "output": job.log}
    return {name: text for name, text in texts.items() if text}


def _print(facts: dict[str, Any], texts: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    terminal = console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        stamp = value.astimezone().strftime("%Y-%m-%d %H:%M:%S") if hasattr(value, "astimezone") else str(value)
        table.add_row(name, Text(inert(stamp)))
    terminal.print(table)
    for name, text in texts.items():
        terminal.print()
        terminal.print(Text(name, style="bold"))
        terminal.print(Text(inert(text.rstrip("\n"))), soft_wrap=True)
