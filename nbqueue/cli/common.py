"""What the commands share: options that name the server, and a connection made from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from nbqueue import settings
from nbqueue.errors import NoServer
from nbqueue.settings import Settings, host
from nbqueue.store import server
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect, preflight

F = TypeVar("F", bound=Callable[..., Any])


class Reached(NamedTuple):
    """A server that answers, the settings that named it, and its name for messages (without a password)."""

    settings: Settings
    broker: Broker
    where: str


def server_options(command: F) -> F:
    """Adds --url, --namespace and --config."""
    command = click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A TOML file with url, namespace, slots.",
    )(command)
    command = click.option("--namespace", help="Prefix of all keys [default: nbq].")(command)
    return click.option("--url", help="The server, as redis://host:6379 or unix:///path [default: NBQUEUE_URL].")(
        command
    )


def reach(url: str | None, namespace: str | None, config: Path | None) -> Reached:
    """A broker on the server that the settings name, or on this host's private one. Starts none; raises NoServer."""
    found = settings.load(url, namespace, config=config)
    where = found.url
    if where is None:
        running = server.status(found.local)
        if running is None:
            remedy = f"On {host()} run `nbqueue server start`, or name a server with --url or NBQUEUE_URL."
            raise NoServer(url="this machine", why="no server is configured, and no private one runs", remedy=remedy)
        where = running.url
    connection = connect(where)
    preflight(connection)
    return Reached(found, Broker(connection, found.namespace), connection.url)
