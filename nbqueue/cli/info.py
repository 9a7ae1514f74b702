"""`nbqueue info` and `nbqueue batches`: showing what is on the server. Both only read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nbqueue.checks import counted, in_units, inert
from nbqueue.cli.server_options import Words, console, duration, print_json, reach, server_options
from nbqueue.errors import BadSignature, NoServer
from nbqueue.model import WorkerInfo, decode, utc
from nbqueue.store import pending
from nbqueue.store.broker import Broker
from nbqueue.store.records import BatchView
from nbqueue.wire import shown_spec

if TYPE_CHECKING:
    from rich.table import Table

_TEXTS = {"queue", "worker", "queues", "host", "batch", "function"}
_COUNTS = ("deferred", "scheduled", "queued", "started", "finished", "failed", "canceled")
_INTERVAL = 1.0  # seconds between two refreshes of --watch


@click.command(short_help="Show queues, workers and running batches.")
@click.argument("queues", nargs=-1, cls=Words)
@click.option("-w", "--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option("-i", "--interval", callback=duration, help="Seconds between refreshes [default: 1]; implies --watch.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object; with --watch, one per line.")
@server_options
def info(
    queues: tuple[str, ...],
    *,
    watch: bool,
    interval: float | None,
    as_json: bool,
    url: str | None,
    namespace: str | None,
    config: Path | None,
) -> None:
    """Show queues, workers and running batches; of QUEUES only, if named. Reads only."""
    _, broker, where = reach(url, namespace, config)

    def snapshot() -> dict[str, Any]:
        return _snapshot(broker, where, set(queues))

    if not watch and interval is None:
        found = snapshot()
        print_json(found) if as_json else _print(found, queues)
        return
    try:
        _watch(snapshot, interval or _INTERVAL, queues, as_json=as_json)
    except KeyboardInterrupt:
        return


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON list.")
@server_options
def batches(*, as_json: bool, url: str | None, namespace: str | None, config: Path | None) -> None:
    """List all batches on the server, the latest first."""
    _, broker, _ = reach(url, namespace, config)
    found = _batches(broker.batches())
    if as_json:
        print_json(found)
    else:
        table = _batch_table(found)
        console().print(table if table.row_count else "There are no batches.")


# ---------------------------------------------------------------- data


def _snapshot(broker: Broker, where: str, only: set[str]) -> dict[str, Any]:
    """Everything that info shows, as plain data."""
    queues = [
        {"queue": name, **{word: getattr(tally, word) for word in _COUNTS}, "slots": broker.live_slots(name)}
        for name, tally in sorted(broker.queues().items())
        if not only or name in only
    ]
    workers = [each for each in _workers(broker) if not only or only.intersection(each["queues"])]
    running = [view for view in broker.batches() if view.done_us is None and (not only or view.queue in only)]
    left = broker.suspended()
    pause = None if left is None else "until resumed" if left == math.inf else f"for {left:.0f} s"
    found = {"server": where, "suspended": pause, "queues": queues, "workers": workers, "batches": _batches(running)}
    return found | {"waiting": _waiting(broker, running)}


def _workers(broker: Broker) -> list[dict[str, Any]]:
    return [{**_worker(raw), "held": held, "lease_s": round(left, 1)} for raw, left, held in broker.workers()]


def _worker(raw: bytes) -> dict[str, Any]:
    try:
        each = decode(WorkerInfo, raw, "The record of a worker")
    except BadSignature:
        return {"worker": "(unreadable)", "host": "", "pid": None, "queues": [], "slots": None}
    facts = {name: getattr(each, name) for name in ("host", "pid", "slots", "python", "version")}
    return {"worker": each.id, "queues": list(each.queues), **facts}


def _batches(views: list[BatchView]) -> list[dict[str, Any]]:
    return [
        {
            "batch": view.name or view.id,
            "id": view.id,
            "function": shown_spec(view.spec).label,
            "queue": view.queue,
            "jobs": view.tally.n,
            **{word: getattr(view.tally, word) for word in _COUNTS},
            "created": utc(view.created_us).isoformat(),
            "done": view.done_us is not None,
        }
        for view in sorted(views, key=lambda each: -each.created_us)
    ]


def _waiting(broker: Broker, running: list[BatchView]) -> list[dict[str, Any]]:
    """Why queued jobs do not start, except because all slots are busy."""
    found = pending.grouped(broker, running, _facts)
    return [
        {"jobs": sum(view.tally.queued for view in views), **why._asdict(), "batches": [view.id for view in views]}
        for why, views in found
        if why.reason != pending.BUSY
    ]


def _facts(view: BatchView) -> tuple[str, str]:
    spec = shown_spec(view.spec)
    return spec.label, spec.owner


# ---------------------------------------------------------------- output


def _watch(snapshot: Callable[[], dict[str, Any]], interval: float, queues: tuple[str, ...], *, as_json: bool) -> None:
    from rich.live import Live

    terminal = console()
    if as_json or not terminal.is_terminal:
        while True:
            print_json(snapshot(), indent=None) if as_json else _print(snapshot(), queues)
            time.sleep(interval)
    with Live(console=terminal, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(_page(snapshot(), queues), refresh=True)
            except NoServer as why:
                live.update(f"{time.strftime('%H:%M:%S')}  {why} Trying again.", refresh=True)
            time.sleep(interval)


def _print(found: dict[str, Any], queues: tuple[str, ...]) -> None:
    console().print(_page(found, queues))


def _page(found: dict[str, Any], queues: tuple[str, ...]) -> Any:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(f"server   {found['server']}")]
    if found["suspended"]:
        parts.append(
            Text(f"suspended {found['suspended']}: no new jobs start; `nbqueue resume` ends the pause", style="yellow")
        )
    named = " ".join(queues)
    strange = [name for name in queues if name not in {row["queue"] for row in found["queues"]}]
    if found["queues"] and strange:
        parts.append(Text(f"no such queue: {' '.join(strange)}", style="yellow"))
    unused = (
        f"No queue {named} has been used yet; `nbqueue info` lists all." if named else "No queue has been used yet."
    )
    up = f"No worker serves {named}." if named else "No worker is up."
    for table, empty in (
        (_queue_table(found["queues"]), unused),
        (_worker_table(found["workers"]), f"{up} Start one with `{f'nbqueue worker {named}'.rstrip()}`."),
        (_batch_table(found["batches"]), "No batch is running; `nbqueue batches` lists all."),
    ):
        parts += [Text(""), table if table.row_count else Text(empty)]
    for each in found["waiting"]:
        what = inert(
            f"{counted(each['jobs'], 'job')} wait{'s' * (each['jobs'] == 1)}: {each['text']}. {each['remedy']}".rstrip()
        )
        parts += [Text(""), Text(what, style="yellow")]
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for column in columns:
        # Ids are folded, never truncated, so that they can be copied.
        text = column in _TEXTS
        table.add_column(column, justify="left" if text else "right", overflow="fold" if text else "ellipsis")
    return table


def _used(rows: list[dict[str, Any]]) -> list[str]:
    """The states to show: queued, started, and those with at least one job."""
    return [word for word in _COUNTS if word in {"queued", "started"} or any(row[word] for row in rows)]


def _queue_table(rows: list[dict[str, Any]]) -> Table:
    words = _used(rows)
    table = _table("queues", "queue", *words, "slots")
    for row in rows:
        _row(table, row["queue"], *(row[word] for word in words), row["slots"])
    return table


def _worker_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("workers", "worker", "host", "queues", "slots", "held", "lease")
    for row in rows:
        lease = f"{row['lease_s']:.0f} s"
        _row(table, row["worker"], row["host"], " ".join(row["queues"]), row["slots"] or "", row["held"], lease)
    return table


def _batch_table(rows: list[dict[str, Any]]) -> Table:
    words = _used(rows)
    table = _table("batches", "batch", "function", "queue", "jobs", *words, "age")
    for row in rows:
        counts = [row["jobs"], *(row[word] for word in words)]
        _row(table, row["batch"], row["function"], row["queue"], *counts, _ago(row["created"]))
    return table


def _ago(stamp: str) -> str:
    from datetime import datetime

    age = max(0.0, time.time() - datetime.fromisoformat(stamp).timestamp())
    return in_units(age, "d", "h", "min") or f"{age:.0f} s"


def _row(table: Table, *cells: object) -> None:
    from rich.text import Text

    # Text, not markup: names and labels come from users.
    table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else inert(str(cell))) for cell in cells))
