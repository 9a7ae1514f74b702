"""`nbqueue worker`: running jobs."""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import click

from nbqueue.checks import check_queue
from nbqueue.cli.server_options import Reached, Words, duration, reach, server_options
from nbqueue.client.worker import RQS, Worker
from nbqueue.errors import BadOption
from nbqueue.model import LEASE
from nbqueue.worker.plan import ALL_QUEUES


def _queues(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name for text in value for name in text.split(",") if name) or ("default",)
    return tuple(name if name == ALL_QUEUES else check_queue("queue", name) for name in dict.fromkeys(names))


@click.command(short_help="Run jobs of QUEUES, in this order of priority.")
@click.argument("queues", nargs=-1, cls=Words, callback=_queues)
@click.option("-b", "--burst", is_flag=True, help="Exit when no jobs are left.")
@click.option("-j", "--slots", type=click.IntRange(1, 4096), help="Jobs at a time [default: the CPUs it may use].")
@click.option("-n", "--name", help="Display name [default: the host's].")
@click.option("--isolate", is_flag=True, help="Run every job in a process of its own, however short.")
@click.option("--max-jobs", type=click.IntRange(1), help="Exit after this many jobs.")
@click.option(
    "--max-idle", "--max-idle-time", callback=duration, help="Exit after this long without a job, as 300, 5m or 2h."
)
@click.option("--patience", callback=duration, default="0", help="With --burst: wait this long for a first job.")
@click.option("--grace", callback=duration, default="5", help="Seconds for running jobs after SIGTERM [default: 5].")
@click.option("-P", "--path", multiple=True, help="A folder to import from, before all others; repeatable.")
@click.option("--preload", multiple=True, help="A module to import before any function; repeatable.")
@click.option("--exception-handler", multiple=True, help="A function to call on failures, as mylib.notify; repeatable.")
@click.option("-w", "--worker-class", help="A subclass of nbqueue.Worker, as mylib.MyWorker or nbqueue.SimpleWorker.")
@click.option(
    "--worker-ttl",
    "--lease",
    callback=duration,
    default=str(LEASE),
    help="Seconds without a heartbeat before its jobs are reassigned [default: 30].",
)
@click.option("--beat", callback=duration, hidden=True)
@click.option("--local", is_flag=True, hidden=True)
@click.option("-q", "--quiet", is_flag=True, help="Log only warnings.")
@click.option("--logging-level", "--logging_level", help="WARNING or more is as --quiet.")
@click.option("--pid", type=click.Path(path_type=Path, dir_okay=False), help="Write the process id into this file.")
@click.option("-v", "--verbose", is_flag=True, help="Changes nothing: this is the default.")
@click.option("-s", "--with-scheduler", is_flag=True, hidden=True)
@click.option("--results-ttl", hidden=True)
@click.option("-ds", "--dequeue-strategy", hidden=True)
@click.option("-S", "--serializer", hidden=True)
@click.option("--sentry-dsn", envvar="RQ_SENTRY_DSN", hidden=True)
@click.option("--disable-default-exception-handler", is_flag=True, hidden=True)
@click.option("--disable-job-desc-logging", is_flag=True, hidden=True)
@server_options
def worker(
    queues: tuple[str, ...], *, url: str | None, namespace: str | None, config: Path | None, **options: Any
) -> None:
    """Run jobs of QUEUES, in this order of priority [default: default].

    Every job runs in a process that may crash, hang or leak without harm to others. The worker stops on Ctrl-C or
    SIGTERM: running jobs get a grace period, and are then re-queued for other workers.

    \b
      nbqueue worker --burst high default low
      nbqueue worker --slots 4 --max-idle 10m
    """  # noqa: D301 - click reads the control character
    _warn_ignored(options)
    if options["quiet"] and options["verbose"]:
        raise BadOption(message="--quiet and --verbose contradict each other: give one of them.")
    made = _made(queues, reach(url, namespace, config), options)
    # Jobs can read the worker's environment: it must contain neither the server's address nor the secret.
    os.environ.pop("NBQUEUE_URL", None)
    os.environ.pop("NBQUEUE_SECRET", None)
    if options["pid"] is not None:
        options["pid"].write_text(f"{os.getpid()}\n")
    level = options["logging_level"]
    made.work(options["burst"], level, max_jobs=options["max_jobs"], max_idle_time=options["max_idle"])


def _warn_ignored(options: dict[str, Any]) -> None:
    for name, why in RQS.items():
        if options.pop(name, None):
            click.echo(f"nbqueue: --{name.replace('_', '-')} changes nothing here: {why}.", err=True)


def _made(queues: tuple[str, ...], reached: Reached, options: dict[str, Any]) -> Worker:
    """The worker that the options ask for. Raises BadOption."""
    folders = tuple(os.path.abspath(each) for each in options["path"])  # noqa: PTH100 - as sys.path has them
    sys.path[:0] = folders
    made = _class(options["worker_class"])(
        queues,
        reached.broker.client,
        options["name"],
        slots=options["slots"] or reached.settings.slots,
        namespace=reached.settings.namespace,
        worker_ttl=options["worker_ttl"],
        exception_handlers=options["exception_handler"],
        path=folders,
        preload=options["preload"],
        grace=options["grace"],
        isolate=options["isolate"],
        quiet=options["quiet"],
    )
    made.beat = options["beat"] or made.beat
    if not 0 < made.beat < made.lease:
        raise BadOption(message="--beat must be shorter than --worker-ttl.")
    made.spill = reached.settings.spill or ""
    made.patience, made.local, made.exits, made.shown = options["patience"], options["local"], True, reached.where
    return made


def _class(name: str | None) -> type[Worker]:
    """The worker class with this dotted name. Raises BadOption."""
    if name is None:
        return Worker
    sys.path.append(str(Path.cwd()))  # as `python -m` has it
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as why:
        raise BadOption(message=f"--worker-class {name} cannot be imported ({why}). Give its folder with -P.") from why
    if not inspect.isclass(found) or not issubclass(found, Worker):
        raise BadOption(message=f"--worker-class {name} is not a subclass of nbqueue.Worker.")
    return found
