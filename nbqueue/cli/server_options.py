"""Shared by all commands: the options that name the server, and the connection."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
import msgspec
from click.core import ParameterSource

from nbqueue import settings
from nbqueue.checks import seconds
from nbqueue.errors import BadOption, NoServer
from nbqueue.settings import Settings, host
from nbqueue.store import server
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect, preflight

if TYPE_CHECKING:
    from rich.console import Console

    from nbqueue.client.session.session import Session

RQS = "redis://localhost:6379"  # the default of `rq worker`

F = TypeVar("F", bound=Callable[..., Any])


class Reached(NamedTuple):
    """A server that answers, the settings that named it, and its URL for messages (without a password)."""

    settings: Settings
    broker: Broker
    where: str


class Words(click.Argument):
    """An argument of any number of words; by default those of the config file (as click does from 8.3 on)."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """The words on the command line, or those of the config file."""
        value, source = super().consume_value(ctx, opts)
        return (ctx.lookup_default(self.name or "") or () if value == () else value), source


def server_options(command: F) -> F:
    """Adds --url, --namespace and --config. The table of the config file with the command's name sets its options."""
    command = click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        callback=_configured,
        help="A TOML file with url, namespace, slots, and a table of options for each command, as [worker].",
    )(command)
    command = click.option("--namespace", help="Prefix of all keys [default: nbq].")(command)
    text = (
        "The server, as redis://host:6379 or unix:///path [default: NBQUEUE_URL, RQ_REDIS_URL, the private one of this "
    )
    return click.option("-u", "--url", help=f"{text}machine, redis://localhost:6379].")(command)


def _configured(context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Uses the command's table in the config file as defaults of its options."""
    name = context.command.name or ""
    tables = settings.command_tables(path)
    if context.parent is not None and isinstance(context.parent.command, click.Group):
        commands = context.parent.command.list_commands(context.parent)
        if strange := sorted(tables.keys() - set(commands)):
            named = ", ".join(commands)
            raise BadOption(
                message=f"The config file has a table [{strange[0]}], but there is no such command. Commands: {named}."
            )
    table = tables.get(name, {})
    known = {option.name: option for option in context.command.params if option.name and option.name != "config"}
    if unknown := sorted(table.keys() - known.keys()):
        shown = sorted(name.replace("_", "-") for name, option in known.items() if not getattr(option, "hidden", False))
        raise BadOption(
            message=f"The config file has {unknown[0]!r} in its table [{name}], but that command has no such option. "
            f"Options: {', '.join(shown)}."
        )
    context.default_map = dict(context.default_map or {}) | table
    return path


def duration(_context: click.Context, option: click.Parameter, value: str | float | None) -> float | None:
    """A callback of options that take a duration: seconds, or text such as 5m. Raises BadOption."""
    return None if value is None else seconds(f"--{(option.name or '').replace('_', '-')}", value)


def reach(url: str | None, namespace: str | None, config: Path | None) -> Reached:
    """A broker on the server that the settings name, on this host's private one, or on RQ's default.

    Never starts a server; raises NoServer.
    """
    found = configured(url, namespace, config)
    where = found.url
    if where is None:
        running = server.status(found.local)
        where = RQS if running is None else running.url
    connection = connect(where)
    try:
        preflight(connection)
    except NoServer as why:
        if where != RQS or found.url is not None:
            raise
        remedy = f"On {host()} run `nbqueue server start`, or name a server with --url or NBQUEUE_URL."
        raise NoServer(
            url="this machine", why=f"no server is configured, no private one runs, nor one at {RQS}", remedy=remedy
        ) from why
    return Reached(found, Broker(connection, found.namespace), connection.url)


def configured(url: str | None, namespace: str | None, config: Path | None) -> Settings:
    """The settings in force; RQ_REDIS_URL names the server if no setting of nbqueue does."""
    found = settings.load(url, namespace, config=config)
    theirs = os.environ.get("RQ_REDIS_URL")
    return settings.load(theirs, namespace, config=config) if found.url is None and theirs else found


def session(url: str | None, namespace: str | None, config: Path | None, *, start: bool = False) -> Session:
    """Opens the session of this process. A private server is started only with `start`."""
    from nbqueue.client.session import session as sessions

    found = _reachable(url, namespace, config) if not start else configured(url, namespace, config)
    opened = sessions.Session(found)
    opened.ends_by = "nbqueue server stop"
    opened.spool.read_only("commands do not write to the spool")  # 10,000 commands must not leave 10,000 files
    if not start:
        with warnings.catch_warnings(action="ignore"):  # warnings about the server's safety are for those who submit
            opened.broker  # noqa: B018 - connects
    sessions.use(opened)
    return opened


def _reachable(url: str | None, namespace: str | None, config: Path | None) -> Settings:
    """The settings of a server that answers."""
    reached = reach(url, namespace, config)
    if reached.settings.url is None and reached.where == connect(RQS).url:
        return msgspec.structs.replace(reached.settings, url=RQS)
    return reached.settings


def console() -> Console:
    """The terminal; piped output is not wrapped to a terminal's width."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=240)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout; without an indent, on one line."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=indent, ensure_ascii=False))
