"""`nbqueue enqueue`: one job from the command line."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from nbqueue.checks import seconds
from nbqueue.cli import rq_arguments
from nbqueue.cli.server_options import duration, server_options, session
from nbqueue.errors import BadInput, BadOption, InUse
from nbqueue.policies import Retry


@click.command()
@click.argument("function")
@click.argument("arguments", nargs=-1)
@click.option("-q", "--queue", default="default", help="The queue [default: default].")
@click.option("--timeout", help="The time limit of a run, as 90, 3m or 2h; -1: none [default: 180].")
@click.option("--result-ttl", help="How long the result is kept, as 500, 2h or 7d; -1: a year [default: 500].")
@click.option("--failure-ttl", help="How long a failure is kept [default: 30d].")
@click.option("--ttl", callback=duration, help="Cancel it if it has waited this long.")
@click.option("--description", default="", help="Description.")
@click.option("--depends-on", multiple=True, metavar="ID", help="A job or batch that must finish first.")
@click.option("--allow-failure", is_flag=True, help="With --depends-on: start also if that failed.")
@click.option("--job-id", help="Job id [default: generated].")
@click.option("--at-front", is_flag=True, help="Put it at the front of its queue.")
@click.option("--retry-max", type=click.IntRange(0), default=0, help="How many retries after a failure.")
@click.option("--retry-interval", multiple=True, default=("0",), help="Seconds before each retry.")
@click.option("--schedule-in", callback=duration, help="Run it after this long, as 10s, 5m or 2d.")
@click.option("--schedule-at", type=click.DateTime(), help="Run it at this local time, as 2030-12-24T18:00:00.")
@click.option("-P", "--path", multiple=True, help="Folders to import the function from [default: the current one].")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@server_options
def enqueue(
    function: str,
    arguments: tuple[str, ...],
    *,
    url: str | None,
    namespace: str | None,
    config: Path | None,
    quiet: bool,
    path: tuple[str, ...],
    **typed: Any,
) -> None:
    """Enqueue FUNCTION, a dotted name, with ARGUMENTS. Prints the job's id.

    \b
      text   @file   :json   %literal   key=text   key=@file   key:=json   key%=literal

    \b
      nbqueue enqueue mylib.count http://example.org limit:=3 --timeout 10m
    """  # noqa: D301 - click reads the control character
    args, kwargs = rq_arguments.parse(arguments)
    found = [os.path.abspath(each) for each in path or (".",)]  # noqa: PTH100 - links stay as they are
    sys.path[:0] = [each for each in found if each not in sys.path]
    at, after = typed.pop("schedule_at"), typed.pop("schedule_in")
    options = _options(**typed)
    if at is not None and after is not None:
        raise BadOption(message="Give --schedule-in or --schedule-at, not both.")
    _check(function, kwargs)
    session(url, namespace, config, start=True)
    job = _send(function, args, kwargs, options, at, after)
    if not quiet:
        click.echo(job.id)


def _check(function: str, kwargs: dict[str, Any]) -> None:
    """Raises BadInput for a wrong function name, or an option given as argument, before a server is started."""
    from nbqueue.client.calls.function import describe

    found = describe(function)
    named = found.signature.parameters if found.signature is not None else kwargs
    options = {option.name for option in enqueue.params if isinstance(option, click.Option)}
    if strange := sorted(kwargs.keys() & options - named.keys()):
        flag = f"--{strange[0].replace('_', '-')} {kwargs[strange[0]]}"
        raise BadInput(
            message=f"{found.label}{found.signature} has no parameter {strange[0]!r}. Did you mean the option {flag}?"
        )


def _send(
    function: str, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any], at: datetime | None, after: Any
) -> Any:
    from nbqueue.client.queue import Queue

    queue = Queue(options.pop("queue")).options(**options)
    try:
        if at is not None:
            return queue.enqueue_at(at, function, *args, **kwargs)
        if after is not None:
            return queue.enqueue_in(after, function, *args, **kwargs)
        return queue.enqueue(function, *args, **kwargs)
    except InUse as why:
        name = why.facts["name"]
        look = f"Choose another id, or see that job with `nbqueue show {name}`."
        raise BadInput(message=f"The id {name!r} is in use by another job or batch. {look}") from why


def _options(
    *,
    timeout: str | None,
    depends_on: tuple[str, ...],
    allow_failure: bool,
    retry_max: int,
    retry_interval: tuple[str, ...],
    **rest: Any,
) -> dict[str, Any]:
    from nbqueue.policies import Dependency

    options = {name: value for name, value in rest.items() if value not in (None, "")}
    if timeout is not None:
        options["timeout"] = None if timeout == "-1" else seconds("--timeout", timeout)
    for name in ("result_ttl", "failure_ttl"):
        if name in options:
            options[name] = seconds(f"--{name.replace('_', '-')}", options[name])
    if depends_on:
        options["depends_on"] = Dependency(list(depends_on), allow_failure=allow_failure)
    elif allow_failure:
        raise BadInput(message="--allow-failure needs --depends-on.")
    if retry_max:
        options["retry"] = Retry(retry_max, interval=[seconds("--retry-interval", each) for each in retry_interval])
    return options
