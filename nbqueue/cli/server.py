"""`nbqueue server`: starting and stopping the private server of this machine."""

from __future__ import annotations

import click

from nbqueue import settings
from nbqueue.launch import reachable
from nbqueue.store import server as program
from nbqueue.store.connection import shown


@click.group(short_help="Start, stop or check a private server.")
def server() -> None:
    """Start, stop or check a private Redis or Valkey server; no administrator is needed."""


@server.command(short_help="Make the private server reachable from other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port [default: a free one].")
@click.option("--bind", default="0.0.0.0", show_default=True, help="The address to listen on.")  # noqa: S104 - other nodes must reach it; it has a password
def start(port: int, bind: str) -> None:
    """Make this machine's private server reachable for workers on other machines, with its data.

    It asks for a password, and its address is written to the connection file in your nbqueue home: workers and
    notebooks on machines that share this home find it without any setting.
    """
    found = settings.load()
    url = reachable.start(found, port=port, bind=bind)
    click.echo(f"The server is up at {shown(url)}.")
    click.echo(f"Its address and password are in {found.home / 'connection.toml'} (readable by you only).")
    click.echo("Machines that share this home find it by themselves; for others copy that file and the file `secret`.")
    click.echo("Stop it with `nbqueue server stop`.")


@server.command(short_help="Stop the private server; its data stay on disk.")
def stop() -> None:
    """Stop this machine's private server; its data stay on disk for the next start."""
    found = settings.load()
    if reachable.stop(found):
        click.echo("The server is stopped. Its data are on disk, for the next start.")
    else:
        click.echo("No private server runs on this machine.")


@server.command(short_help="Say whether the private server runs, and where.")
def status() -> None:
    """Say whether this machine's private server runs, and where."""
    found = settings.load()
    running = program.status(found.local)
    if running is None:
        click.echo("No private server runs on this machine. `nbqueue server start` starts one.")
        raise SystemExit(1)
    click.echo(f"The server runs: {shown(running.url)}, pid {running.pid}, data in {found.local}")
    if found.url:
        click.echo(f"Notebooks and workers use {shown(found.url)}")
