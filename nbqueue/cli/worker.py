"""`nbqueue worker`: the hands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from nbqueue.checks import check_name, seconds
from nbqueue.cli.common import reach, server_options
from nbqueue.errors import BadOption
from nbqueue.model import BEAT, LEASE
from nbqueue.wire import Keyring, Sealer
from nbqueue.worker.parent import Parent
from nbqueue.worker.plan import ALL_QUEUES, Plan
from nbqueue.worker.score import Score


def _duration(_context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    return None if value is None else seconds(f"--{(option.name or '').replace('_', '-')}", value)


def _queues(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name for text in value for name in text.split(",") if name) or ("default",)
    return tuple(name if name == ALL_QUEUES else check_name("queue", name) for name in dict.fromkeys(names))


@click.command()
@click.argument("queues", nargs=-1, callback=_queues)
@click.option("-b", "--burst", is_flag=True, help="Leave when nothing is left to do.")
@click.option("-j", "--slots", type=click.IntRange(1, 4096), help="Jobs at a time [default: the CPUs it may use].")
@click.option("-n", "--name", help="A name for people [default: the host's].")
@click.option("--isolate", is_flag=True, help="A process of its own for every job, however short.")
@click.option("--max-jobs", type=click.IntRange(1), help="Leave after this many jobs.")
@click.option("--max-idle", callback=_duration, help="Leave after this long without a job, as 300, 5m or 2h.")
@click.option("--patience", callback=_duration, default="0", help="With --burst: wait this long for a first job.")
@click.option("--grace", callback=_duration, default="5", help="What running jobs get at SIGTERM [default: 5].")
@click.option("--lease", callback=_duration, default=str(LEASE), hidden=True)
@click.option("--beat", callback=_duration, default=str(BEAT), hidden=True)
@click.option("--local", is_flag=True, hidden=True)
@click.option("-q", "--quiet", is_flag=True, help="Log only what wants a person.")
@server_options
def worker(
    queues: tuple[str, ...],
    *,
    url: str | None,
    namespace: str | None,
    config: Path | None,
    slots: int | None,
    name: str | None,
    quiet: bool,
    **plan: Any,
) -> None:
    """Run jobs of QUEUES, in this order of priority [default: default].

    Every job runs in a process that may crash, hang or leak without harm to others. The worker leaves at Ctrl-C or
    SIGTERM: running jobs get a grace, then they are given back for others to run.

    \b
      nbqueue worker --burst high default low
      nbqueue worker --slots 4 --max-idle 10m
    """  # noqa: D301 - click reads the control character
    found, broker, where = reach(url, namespace, config)
    check_name("--name", name or "worker")
    words = Plan(**plan, queues=queues, slots=slots or found.slots or 0, name=name or "", server=where, exits=True)
    if not 0 < words.beat < words.lease:
        raise BadOption(message="--beat must be shorter than --lease.")
    # What a job may read of its worker's environment holds neither the way to the server nor the key.
    os.environ.pop("NBQUEUE_URL", None)
    sealer = Sealer(Keyring.load(found.home), found.namespace)
    os.environ.pop("NBQUEUE_SECRET", None)
    sys.exit(Parent(broker, sealer, words, score=Score(quiet=quiet)).run())
