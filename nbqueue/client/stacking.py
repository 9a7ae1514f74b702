"""Results that are DataFrames or Series, stacked into one frame, with the arguments of each job beside its rows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from nbqueue.client import columns, frame, tables
from nbqueue.client.rows import Rows, of_batch
from nbqueue.errors import BadInput
from nbqueue.model import State

if TYPE_CHECKING:
    import pandas as pd

    from nbqueue.client.batch import Batch


def stack(batch: Batch[Any], *, args: bool) -> pd.DataFrame:
    """The rows of all results in input order: arguments, then the results' own columns.

    The outer levels of the index are the batch's, the inner ones those of the results. Jobs without a result are left
    out, with a warning. Raises BadInput where a result is neither a DataFrame nor a Series.
    """
    import pandas as pd

    rows = of_batch(batch)
    places = [place for place, outcome in enumerate(rows.outcomes) if outcome and outcome.state is State.FINISHED]
    tabled = [_table(rows, place) for place in places]
    if len(places) < rows.n:
        warnings.warn(f"{rows.n - len(places):,} of {rows.n:,} jobs of {batch.id} have no result here.", stacklevel=3)
    given = frame.arguments_of(rows, whole=args)
    taken = frozenset(given)
    tabled = [table.rename(columns=lambda name: _free(name, taken)) for table in tabled]
    labels = frame.index_of(rows)[places]
    names = list(labels.names)
    made = pd.concat(tabled, keys=list(labels), names=names) if tabled else pd.DataFrame(index=labels)
    owners = [place for place, table in zip(places, tabled, strict=True) for _ in range(len(table))]
    beside = {name: columns.column([values[owner] for owner in owners]).array for name, values in given.items()}
    return pd.concat([pd.DataFrame(beside, index=made.index), made], axis=1)


def _table(rows: Rows, place: int) -> pd.DataFrame:
    value = frame.value_of(rows.outcomes[place])
    if tables.is_frame(value):
        return value  # type: ignore[no-any-return]
    if tables.is_series(value):
        return value.to_frame("result" if value.name is None else value.name)  # type: ignore[no-any-return]
    said = value if isinstance(value, str) and value.startswith("<cannot") else f"of type {type(value).__name__}"
    raise BadInput(
        message=f"concat() stacks DataFrames and Series, and the result of {rows.ids[place]} is {said}. "
        "to_frame() takes results of every kind, one row each."
    )


def _free(name: Any, taken: frozenset[str]) -> Any:
    return columns.free(name, taken, "res_") if isinstance(name, str) else name
