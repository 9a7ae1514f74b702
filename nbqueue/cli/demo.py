"""`nbqueue demo`: a first look in ten seconds."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from nbqueue.cli.demo_function import count_words_at_url
from nbqueue.cli.demo_pages import documents, served
from nbqueue.client import api
from nbqueue.client.batch import Batch

ROWS = 10
MISSING = "this-page-is-missing-on-purpose"
PASTE = """import nbqueue
batch = nbqueue.map(lambda n: sum(i * i for i in range(n)), range(1_000))
batch.to_frame()"""


@click.command()
@click.argument("urls", nargs=-1, metavar="[URL]...")
def demo(urls: tuple[str, ...]) -> None:
    """Count the words of many pages, to show how nbqueue works.

    Starts a private server and two slots in a temporary folder, maps a function over the URLs (without any: over the
    texts of the packages installed here, served from this machine), and stops what it started.
    """
    with _own_home(), contextlib.ExitStack() as stack:
        pages = list(urls)
        if not urls:
            pages = stack.enter_context(served(documents()))
            pages.insert(4, f"{pages[0].rsplit('/', 2)[0]}/{MISSING}")
        click.echo(
            f"nbqueue.map(count_words_at_url, urls) on {len(pages):,} pages, with a private server and two slots,\n"
            "which this demo stops at its end:\n"
        )
        try:
            batch = api.map(count_words_at_url, pages)
            batch.wait()
            _report(batch, own=not urls)
        finally:
            api.local().stop()


@contextlib.contextmanager
def _own_home() -> Iterator[None]:
    """A temporary home, so that the demo does not touch the user's files."""
    saved = {
        name: os.environ.pop(name, None) for name in ("NBQUEUE_HOME", "NBQUEUE_URL", "NBQUEUE_SLOTS", "NBQUEUE_SECRET")
    }
    home = Path(tempfile.mkdtemp(prefix="nbq-demo-"))
    os.environ |= {"NBQUEUE_HOME": str(home), "NBQUEUE_SLOTS": "2"}
    try:
        yield
    finally:
        shutil.rmtree(home, ignore_errors=True)
        for name, value in saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _report(batch: Batch[int], *, own: bool) -> None:
    frame = batch.to_frame()
    shown = frame[["url", "result", "status", "error"]].head(ROWS)
    shown = shown.assign(url=shown["url"].str.replace(r"^https?://[^/]+/", "", regex=True).str.slice(0, 34))
    click.echo(f"\nbatch.to_frame()\n{shown.to_string(max_colwidth=36, na_rep='')}")
    click.echo(f"... and {max(0, len(frame) - ROWS):,} more rows\n")
    words, failed = frame["result"].sum(), batch.failed
    click.echo(f"{words:,} words on {batch.tally.finished:,} pages; {len(failed)} failed:")
    for job in list(failed)[:3]:
        click.echo(f"  {job.id}  {job.error}")
    if own:
        click.echo(
            "One page is missing on purpose: a failed call is one row of the frame and does not stop the others."
        )
    click.echo(f"\nNext, paste this into a notebook:\n\n{PASTE}\n")
