"""The failed jobs of a batch, as a sequence that shows itself as a table."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from nbqueue.client.job import Job, text_of
from nbqueue.errors import BadSignature

if TYPE_CHECKING:
    from nbqueue.client.batch import Batch

R = TypeVar("R")
SHOWN = 20
WIDTH = 120


class Failed(Sequence[Job[R]], Generic[R]):
    """Jobs of one batch, in input order."""

    def __init__(self, batch: Batch[R], indexes: list[int]) -> None:
        self._batch, self._indexes = batch, indexes

    def __len__(self) -> int:
        return len(self._indexes)

    @overload
    def __getitem__(self, index: int) -> Job[R]: ...
    @overload
    def __getitem__(self, index: slice) -> Failed[R]: ...
    def __getitem__(self, index: int | slice) -> Job[R] | Failed[R]:
        if isinstance(index, slice):
            return Failed(self._batch, self._indexes[index])
        return Job(self._batch, self._indexes[index])

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(job.id, *_told(job)) for job in self[:SHOWN]]

    def _rest(self) -> str:
        more = len(self) - SHOWN
        return f"... and {more:,} more" if more > 0 else ""

    def __repr__(self) -> str:
        if not self._indexes:
            return f"no failed jobs in {self._batch.id}"
        rows = [("job", "cause", "error"), *self._rows()]
        widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
        lines = [f"{job:<{widths[0]}}  {cause:<{widths[1]}}  {error}" for job, cause, error in rows]
        return "\n".join(line.rstrip() for line in [*lines, self._rest()] if line)

    def _repr_html_(self) -> str:
        if not self._indexes:
            return f"<p>no failed jobs in {html.escape(self._batch.id)}</p>"
        rows = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        head = "<tr><th>job</th><th>cause</th><th>error</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table><p>{self._rest()}</p>"


def _told(job: Job[R]) -> tuple[str, str]:
    try:
        outcome = job.outcome
    except BadSignature as why:
        return "signature", _line(str(why))
    if outcome is None:
        return "", ""  # a retry has withdrawn it since
    return str(outcome.cause or ""), _line(text_of(outcome))


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
