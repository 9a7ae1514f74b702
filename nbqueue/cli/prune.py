"""`nbqueue prune`: old copies in the spool, and batches on the server that are done since long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from nbqueue import settings
from nbqueue.checks import size_text
from nbqueue.cli.common import Reached, duration, reach, server_options
from nbqueue.client import spoolhouse
from nbqueue.client.spoolhouse import Kept
from nbqueue.errors import SetupError
from nbqueue.store.records import BatchView
from nbqueue.wire import Keyring

DAY = 86_400.0


class Old(NamedTuple):
    """What prune found: on the server, and in the spool."""

    views: list[BatchView]
    kept: list[Kept]


@click.command()
@click.option("--older", callback=duration, default="30d", show_default=True, help="Only what is older than this.")
@click.option("-n", "--dry-run", is_flag=True, help="Only list it.")
@server_options
def prune(*, older: float, dry_run: bool, url: str | None, namespace: str | None, config: Path | None) -> None:
    """Remove old copies from the spool, and batches of yours that are done from the server. What runs stays."""
    found = settings.load(url, namespace, config=config)
    try:
        server: Reached | None = reach(url, namespace, config)
    except SetupError as why:
        server = None
        click.secho(f"nbqueue: only the spool is looked at. {why}", err=True)
    old = _old(found, server, older)
    for line in _lines(server, old):
        click.echo(line)
    if not dry_run:
        _remove(server, old)
    size = size_text(sum(one.size for one in old.kept))
    what = f"{len(old.views):,} on the server, {len(old.kept):,} in the spool ({size})"
    click.echo(f"would remove {what}" if dry_run else f"removed {what}")


def _old(found: settings.Settings, server: Reached | None, older: float) -> Old:
    """What has not changed for `older` seconds: done batches of ours, and copies of batches that do not run."""
    views = [] if server is None else server.broker.batches()
    ours = set(Keyring.load(found.home).ids) if views else set()
    since = 0 if server is None else server.broker.now_us() - older * 1e6
    running = {view.id for view in views if not view.done}
    kept = [] if found.spool is None else spoolhouse.kept(found.spool)
    return Old(
        [view for view in views if view.signer in ours and view.done_us is not None and view.done_us <= since],
        [one for one in kept if one.written <= time.time() - older and one.key not in running],
    )


def _lines(server: Reached | None, old: Old) -> Iterator[str]:
    now = 0 if server is None else server.broker.now_us()
    for view in old.views:
        named = f" ({view.name})" if view.name else ""
        yield f"server  {view.id}{named}  {view.n:,} jobs, done {_ago(now / 1e6 - (view.done_us or 0) / 1e6)}"
    for one in old.kept:
        birth = one.birth()
        named = f" ({birth.name})" if birth is not None and birth.name else ""
        yield f"spool   {one.batch}{named}  {size_text(one.size)}, written {_ago(time.time() - one.written)}"


def _ago(seconds: float) -> str:
    return f"{seconds / DAY:.0f} days ago" if seconds >= 2 * DAY else f"{seconds / 3600:.1f} hours ago"


def _remove(server: Reached | None, old: Old) -> None:
    for view in old.views:
        assert server is not None
        server.broker.forget(view.id)
    for one in old.kept:
        spoolhouse.remove(one.paths)
