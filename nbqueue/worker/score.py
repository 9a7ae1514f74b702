"""The worker's log: one line an event, in fixed columns, on standard error.

12.30s -> wordcount:17
12.80s <- wordcount:17 ok
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from nbqueue.checks import inert


class Score:
    """Writes the lines; seconds count from the worker's start."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._began = time.monotonic()
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._said: dict[str, str] = {}

    def line(self, sign: str, text: str) -> None:
        """One event; `sign` is `->` begins, `<-` ends, `--` the worker's own, `!!` wants a person."""
        if self._quiet and sign != "!!":
            return
        clean = inert(text.encode("utf-8", "backslashreplace").decode()).replace("\n", " ")
        # A full disk or a closed pipe behind the log is no reason to stop working.
        with contextlib.suppress(OSError):
            print(f"{time.monotonic() - self._began:8.2f}s {sign} {clean}", file=self._stream, flush=True)

    def once(self, topic: str, sign: str, text: str) -> None:
        """A line that is written again only when its text has changed; an empty text closes the topic."""
        if self._said.get(topic, "") != text:
            self._said[topic] = text
            if text:
                self.line(sign, text)

    def group(self, sign: str, batch: str, indexes: Sequence[int], single: bool, rest: str = "") -> None:
        """One line for jobs of a batch that begin or end together."""
        if len(indexes) == 1:
            name = batch if single else f"{batch}:{indexes[0]}"
        elif indexes[-1] - indexes[0] == len(indexes) - 1:
            name = f"{batch}:{indexes[0]}..{indexes[-1]}"
        else:
            name = f"{batch}: {len(indexes)} jobs"
        self.line(sign, f"{name} {rest}".rstrip())
