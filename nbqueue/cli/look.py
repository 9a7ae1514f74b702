"""`nbqueue info` and `nbqueue batches`: a look that changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import click

from nbqueue.cli.common import reach, server_options
from nbqueue.errors import BadSignature
from nbqueue.model import Spec, WorkerInfo, decode
from nbqueue.store.broker import Broker
from nbqueue.store.records import BatchView
from nbqueue.wire import peek


@click.command()
@server_options
def info(url: str | None, namespace: str | None, config: Path | None) -> None:
    """Show queues, workers and running batches. Reads only."""
    from rich.console import Console

    _, broker, where = reach(url, namespace, config)
    console = Console()
    console.print(f"server   {where}", highlight=False, markup=False)
    _show_queues(console, broker)
    _show_workers(console, broker)
    running = [view for view in broker.batches() if view.done_us is None]
    _show_batches(console, running, "No batch is running; `nbqueue batches` lists all.")


@click.command()
@server_options
def batches(url: str | None, namespace: str | None, config: Path | None) -> None:
    """List all batches on the server, the latest first."""
    from rich.console import Console

    _, broker, _ = reach(url, namespace, config)
    _show_batches(Console(), broker.batches(), "No batch is there.")


def _table(title: str, *columns: str) -> object:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXTS else "right")
    return table


_TEXTS = {"queue", "worker", "queues", "host", "batch", "function"}


def _show_queues(console: object, broker: Broker) -> None:
    table = _table("queues", "queue", "queued", "started", "finished", "failed", "canceled", "slots")
    for name, tally in sorted(broker.queues().items()):
        counts = [tally.queued, tally.started, tally.finished, tally.failed, tally.canceled]
        _row(table, name, *counts, broker.live_slots(name))
    _show(console, table, "No queue has been used yet.")


def _show_workers(console: object, broker: Broker) -> None:
    table = _table("workers", "worker", "host", "queues", "slots", "held", "lease")
    for raw, left, held in broker.workers():
        try:
            each = decode(WorkerInfo, raw, "What a worker says of itself")
        except BadSignature:
            _row(table, "(unreadable)", "", "", "", held, f"{left:.0f} s")
            continue
        _row(table, each.id, each.host, " ".join(each.queues), each.slots, held, f"{left:.0f} s")
    _show(console, table, "No worker is up. Start one with `nbqueue worker`.")


def _show_batches(console: object, views: list[BatchView], empty: str) -> None:
    table = _table(
        "batches", "batch", "function", "queue", "jobs", "queued", "started", "finished", "failed", "canceled", "age"
    )
    for view in sorted(views, key=lambda each: -each.created_us):
        tally = view.tally
        counts = [tally.n, tally.queued, tally.started, tally.finished, tally.failed, tally.canceled]
        _row(table, view.name or view.id, _label(view), view.queue, *counts, _ago(view.created_us))
    _show(console, table, empty)


def _label(view: BatchView) -> str:
    try:
        return decode(Spec, peek(view.spec), "A batch's description").label
    except BadSignature:
        return "(unreadable)"


def _ago(us: int) -> str:
    age = max(0.0, time.time() - us / 1e6)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if age >= 2 * size:
            return f"{age / size:.0f} {unit}"
    return f"{age:.0f} s"


def _row(table: object, *cells: object) -> None:
    from rich.table import Table
    from rich.text import Text

    assert isinstance(table, Table)
    # Text, not markup: names and labels come from elsewhere.
    table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in cells))


def _show(console: object, table: object, empty: str) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    assert isinstance(table, Table)
    console.print()
    if table.row_count:
        console.print(table)
    else:
        console.print(empty, markup=False, highlight=False)
