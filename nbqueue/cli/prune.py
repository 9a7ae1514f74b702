"""`nbqueue prune`: old copies in the spool, batches on the server that are done since long, and results of neither."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from nbqueue import settings, spill
from nbqueue.checks import DAY, OFF, size_text, spill_root
from nbqueue.cli.common import Reached, duration, reach, server_options
from nbqueue.client import spoolhouse
from nbqueue.client.spoolhouse import Kept
from nbqueue.errors import SetupError
from nbqueue.store.records import BatchView
from nbqueue.wire import Keyring


class Old(NamedTuple):
    """What prune found: on the server, in the spool, and of spilled results those that neither will have any more."""

    views: list[BatchView]
    kept: list[Kept]
    spilled: list[spill.Folder]


def _roots(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> list[str]:
    return [root for each in value if (root := spill_root("--spill", each)) not in {None, OFF}]


@click.command()
@click.option("--older", callback=duration, default="30d", show_default=True, help="Only what is older than this.")
@click.option("-n", "--dry-run", is_flag=True, help="Only list it.")
@click.option("--spill", "roots", multiple=True, callback=_roots, help="A place of spilled results; repeatable.")
@server_options
def prune(
    *, older: float, dry_run: bool, roots: list[str], url: str | None, namespace: str | None, config: Path | None
) -> None:
    """Remove old copies from the spool, and batches of yours that are done from the server. What runs stays.

    Spilled results, in the folder that the settings or --spill name, go when server and spool have their batch no more.
    """
    found = settings.load(url, namespace, config=config)
    try:
        server: Reached | None = reach(url, namespace, config)
    except SetupError as why:
        server = None
        click.secho(f"nbqueue: only the spool is looked at. {why}", err=True)
    old = _old(found, server, older, [*([found.spill] if found.spill else []), *roots])
    for line in (*_lines(server, old), *_spilled_lines(old)):
        click.echo(line)
    if not dry_run:
        _remove(server, old)
    size = size_text(sum(one.size for one in old.kept))
    what = f"{len(old.views):,} on the server, {len(old.kept):,} in the spool ({size})"
    if old.spilled:
        what += f", {len(old.spilled):,} in the spill ({size_text(sum(one.size for one in old.spilled))})"
    click.echo(f"would remove {what}" if dry_run else f"removed {what}")


def _old(found: settings.Settings, server: Reached | None, older: float, roots: list[str]) -> Old:
    """What has not changed for `older` seconds: done batches of ours, copies of what does not run, spilled results."""
    # Listed first: a batch that comes in between is among those that are wanted.
    spilled = [one for root in dict.fromkeys(roots) for one in spill.folders(root, found.namespace)]
    views = [] if server is None else server.broker.batches()
    ours = set(Keyring.load(found.home).ids) if views else set()
    since = 0 if server is None else server.broker.now_us() - older * 1e6
    running = {view.id for view in views if not view.done}
    kept = [] if found.spool is None else spoolhouse.kept(found.spool)
    old_views = [view for view in views if view.signer in ours and view.done_us is not None and view.done_us <= since]
    old_kept = [one for one in kept if one.written <= time.time() - older and one.key not in running]
    if server is None:
        return Old(old_views, old_kept, [])  # nobody knows which results are still wanted
    going = {view.id for view in old_views}
    wanted = {view.id for view in views} - going
    wanted |= {batch for one in kept if one not in old_kept for batch in spoolhouse.batches_in(one)}
    limit = time.time() - older
    return Old(old_views, old_kept, [one for one in spilled if one.written <= limit and one.batch not in wanted])


def _lines(server: Reached | None, old: Old) -> Iterator[str]:
    now = 0 if server is None else server.broker.now_us()
    for view in old.views:
        named = f" ({view.name})" if view.name else ""
        yield f"server  {view.id}{named}  {view.n:,} jobs, done {_ago(now / 1e6 - (view.done_us or 0) / 1e6)}"
    for one in old.kept:
        birth = one.birth()
        named = f" ({birth.name})" if birth is not None and birth.name else ""
        yield f"spool   {one.batch}{named}  {size_text(one.size)}, written {_ago(time.time() - one.written)}"


def _spilled_lines(old: Old) -> Iterator[str]:
    for one in old.spilled:
        yield f"spill   {one.batch}  {size_text(one.size)} in {one.root}, written {_ago(time.time() - one.written)}"


def _ago(seconds: float) -> str:
    return f"{seconds / DAY:.0f} days ago" if seconds >= 2 * DAY else f"{seconds / 3600:.1f} hours ago"


def _remove(server: Reached | None, old: Old) -> None:
    for view in old.views:
        assert server is not None
        server.broker.forget(view.id)
    for one in old.kept:
        spoolhouse.remove(one.paths)
    for each in old.spilled:
        spill.forget(each.root, each.namespace, each.batch)
