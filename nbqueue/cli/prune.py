"""`nbqueue prune`: removing old batches from the server and the spool, and spilled results that neither needs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from nbqueue import settings, spill
from nbqueue.checks import OFF, counted, in_units, size_text, spill_root
from nbqueue.cli.server_options import Reached, duration, reach, server_options
from nbqueue.client.spool import directory
from nbqueue.client.spool.directory import SpooledFiles
from nbqueue.errors import BadOption, SetupError
from nbqueue.store.records import BatchView
from nbqueue.wire import Keyring


class Old(NamedTuple):
    """What prune removes: batches on the server, copies in the spool, and spilled results that neither needs then."""

    views: list[BatchView]
    copies: list[SpooledFiles]
    spilled: list[spill.Folder]
    names: dict[
        str, str | None
    ]  # of all batches on the server, by id: a batch may have been renamed since it was copied


def _roots(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> list[str]:
    return [root for each in value if (root := spill_root("--spill", each)) not in {None, OFF}]


def _older(context: click.Context, option: click.Parameter, value: str | float) -> float | None:
    """As duration, but refuses a bare number: seconds, where days were probably meant."""
    if str(value).strip().replace(".", "", 1).isdecimal():
        raise BadOption(message=f"--older {value}: give a unit, as {value}d for days or {value}h for hours.")
    return duration(context, option, value)


@click.command(short_help="Remove old results, from the server and from this disk.")
@click.option("--older", callback=_older, default="30d", show_default=True, help="Only what is older, as 5d or 12h.")
@click.option("-n", "--dry-run", is_flag=True, help="Only list it.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing (only a terminal is asked).")
@click.option("--spill", "roots", multiple=True, callback=_roots, help="A place of spilled results; repeatable.")
@server_options
def prune(
    *,
    older: float,
    dry_run: bool,
    yes: bool,
    roots: list[str],
    url: str | None,
    namespace: str | None,
    config: Path | None,
) -> None:
    """Remove old results: your done batches from the server, and their copies from this disk. Lists them first.

    Running batches stay. Spilled results, in the folder of the settings or of --spill, are removed when neither the
    server nor the spool has their batch.
    """
    found = settings.load(url, namespace, config=config)
    try:
        server: Reached | None = reach(url, namespace, config)
    except SetupError as why:
        server = None
        click.secho(f"nbqueue: pruning the spool only. {why}", err=True)
    old = _old(found, server, older, [*([found.spill] if found.spill else []), *roots])
    for line in (*_lines(server, old), *_spilled_lines(old)):
        click.echo(line)
    size = size_text(sum(one.size for one in old.copies))
    what = f"{len(old.views):,} on the server, {len(old.copies):,} in the spool ({size})"
    if old.spilled:
        what += f", {len(old.spilled):,} in the spill ({size_text(sum(one.size for one in old.spilled))})"
    if dry_run:
        click.echo(f"would remove {what}")
        return
    if (old.views or old.copies or old.spilled) and not yes and sys.stdin.isatty():
        click.confirm(f"remove {what}?", abort=True)
    _remove(server, old)
    click.echo(f"removed {what}")


def _old(found: settings.Settings, server: Reached | None, older: float, roots: list[str]) -> Old:
    """Unchanged for `older` seconds: our done batches, copies of batches that do not run, spilled results."""
    # Listed first: a batch that is submitted meanwhile is then found on the server.
    spilled = [one for root in dict.fromkeys(roots) for one in spill.folders(root, found.namespace)]
    views = [] if server is None else server.broker.batches()
    ours = set(Keyring.load(found.home).ids) if views else set()
    since = 0 if server is None else server.broker.now_us() - older * 1e6
    running = {view.id for view in views if not view.done}
    copies = [] if found.spool is None else directory.list_batches(found.spool)
    old_views = [view for view in views if view.signer in ours and view.done_us is not None and view.done_us <= since]
    old_copies = [one for one in copies if one.written <= time.time() - older and one.key not in running]
    if server is None:
        return Old(old_views, old_copies, [], {})  # without the server, any spilled result may still be needed
    removed = {view.id for view in old_views}
    wanted = {view.id for view in views} - removed
    wanted |= {batch for one in copies if one not in old_copies for batch in directory.batches_in(one)}
    limit = time.time() - older
    old_spilled = [one for one in spilled if one.written <= limit and one.batch not in wanted]
    return Old(old_views, old_copies, old_spilled, {view.id: view.name for view in views})


def _lines(server: Reached | None, old: Old) -> Iterator[str]:
    now = 0 if server is None else server.broker.now_us()
    for view in old.views:
        ended = _ago(now / 1e6 - (view.done_us or 0) / 1e6)
        yield f"server  {view.id}{_named(view.name)}  {counted(view.n, 'job')}, done {ended}"
    for one in old.copies:
        header = one.header()
        name = old.names.get(one.batch, None if header is None else header.name)
        yield f"spool   {one.batch}{_named(name)}  {size_text(one.size)}, written {_ago(time.time() - one.written)}"


def _named(name: str | None) -> str:
    return f" ({name})" if name else ""


def _spilled_lines(old: Old) -> Iterator[str]:
    for one in old.spilled:
        yield f"spill   {one.batch}  {size_text(one.size)} in {one.root}, written {_ago(time.time() - one.written)}"


def _ago(seconds: float) -> str:
    return f"{in_units(seconds, 'days', 'hours', 'minutes') or f'{max(0.0, seconds):.0f} s'} ago"


def _remove(server: Reached | None, old: Old) -> None:
    for view in old.views:
        assert server is not None
        server.broker.forget(view.id)
    for one in old.copies:
        directory.remove(one.paths)
    for each in old.spilled:
        spill.forget(each.root, each.namespace, each.batch)
