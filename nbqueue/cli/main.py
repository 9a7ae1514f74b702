"""The command `nbqueue`: one file per group of commands, imported on demand."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

import click

from nbqueue import __version__
from nbqueue.checks import inert
from nbqueue.errors import NbqueueError

_COMMANDS = {
    "worker": "worker",
    "enqueue": "enqueue",
    "info": "info",
    "batches": "info",
    "show": "show",
    "requeue": "manage",
    "cancel": "manage",
    "empty": "manage",
    "stop": "manage",
    "suspend": "manage",
    "resume": "manage",
    "shutdown": "manage",
    "prune": "prune",
    "demo": "demo",
    "server": "server",
}


class _Lazy(click.Group):
    """A group whose commands are imported on demand, so that a worker does not load what a demo needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"nbqueue.cli.{_COMMANDS[cmd_name]}"), cmd_name)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nbqueue")
def cli() -> None:
    """Run functions over lists of inputs, from a notebook, on every machine that reaches one Redis.

    \b
    First steps:
      nbqueue demo                      see it work, on this machine
      nbqueue worker --burst            work until no jobs are left
      nbqueue info                      show queues, workers, batches
    """  # noqa: D301 - click reads the control character


def _warn(message: Warning | str, *_where: Any) -> None:
    """Prints a warning as one line, without the source line."""
    click.secho(f"nbqueue: {inert(str(message))}", fg="yellow", err=True)


def main() -> None:
    """Runs the command line; errors of nbqueue print one line and exit with code 1, warnings print one line."""
    warnings.showwarning = _warn  # type: ignore[assignment]
    try:
        cli.main(prog_name="nbqueue", standalone_mode=True, auto_envvar_prefix="NBQUEUE")
    except NbqueueError as why:
        click.secho(f"nbqueue: {inert(str(why))}", fg="red", err=True)
        sys.exit(1)
