"""Concatenating results that are DataFrames or Series, with the arguments of each job beside its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbqueue.checks import warn
from nbqueue.client.calls import dataframes
from nbqueue.client.frames import columns, frame
from nbqueue.client.frames.rows import of_batch
from nbqueue.client.session.batch_ref import BatchRef
from nbqueue.errors import BadInput
from nbqueue.model import State

if TYPE_CHECKING:
    import pandas as pd


def concat(batch: BatchRef, *, args: bool) -> pd.DataFrame:
    """The rows of all results in input order: arguments, then the results' own columns.

    The outer levels of the index are the batch's, the inner ones those of the results. Arguments over 1 kB, tables and
    arrays are left out unless `args`. Results that are None are left out, as pandas.concat does; jobs without a result
    are left out with a warning. Raises BadInput if a result is neither a DataFrame nor a Series, if all are None, or if
    pandas cannot concatenate them.
    """
    import pandas as pd

    rows = of_batch(batch)
    ended = [position for position, outcome in enumerate(rows.outcomes) if outcome and outcome.state is State.FINISHED]
    values = {position: frame.value_of(rows.outcomes[position]) for position in ended}
    positions = [position for position in ended if values[position] is not None] or ended
    found = [_table(rows.ids[position], values[position]) for position in positions]
    if len(ended) < rows.n:
        warn(f"{rows.n - len(ended):,} of {rows.n:,} jobs of {batch.id} have no result and were left out.")
    given = frame.arguments_of(rows, whole=args)
    if not args:
        given = {name: values for name, values in given.items() if not any(map(_is_large, values))}
    labels = frame.index_of(rows)[positions]
    if not found:
        return pd.DataFrame({name: columns.column([]).array for name in given}, index=labels)
    try:
        made = pd.concat(_renamed(found, frozenset(given)), ignore_index=True)
    except Exception as why:
        raise BadInput(
            message=f"The results of {batch.id} cannot be concatenated ({type(why).__name__}: {why}). "
            "batch.results() returns them one by one."
        ) from why
    owners = [owner for owner, table in enumerate(found) for _ in range(len(table))]
    beside = {name: columns.column([values[positions[owner]] for owner in owners]) for name, values in given.items()}
    whole = pd.concat([pd.DataFrame(beside, index=made.index), made], axis=1)
    return whole.set_axis(_index(labels[owners], [table.index for table in found]), axis=0)


def _is_large(value: Any) -> bool:
    """Whether a value is too large to be repeated in each row: summaries, tables and arrays."""
    return isinstance(value, columns.Summary) or bool(getattr(value, "shape", ()))


def _renamed(found: list[pd.DataFrame], taken: frozenset[str]) -> list[pd.DataFrame]:
    """The tables, with `res_` before column names that arguments have, and with columns of one depth."""
    import pandas as pd

    if len({table.columns.nlevels for table in found}) > 1:
        found = [table.set_axis(pd.Index(list(table.columns), tupleize_cols=False), axis=1) for table in found]
    own = {name for table in found for name in table.columns if isinstance(name, str)}
    names = {name: columns.free(name, taken | own, "res_") for name in own & taken}
    # Only for flat columns: rename() would rename in every level of a MultiIndex.
    return [table.rename(columns=names) if table.columns.nlevels == 1 else table for table in found]


def _index(labels: pd.Index[Any], inner: list[pd.Index[Any]]) -> pd.MultiIndex:
    """The levels of `labels`, then those of the results; missing values fill up indexes with fewer levels."""
    import pandas as pd

    levels = [labels.get_level_values(level) for level in range(labels.nlevels)]
    for level in range(max(index.nlevels for index in inner)):
        name = next(index.names[level] for index in inner if level < index.nlevels)
        pieces = [
            index.get_level_values(level)
            if level < index.nlevels
            else pd.Index([None] * len(index), dtype=object, name=name)
            for index in inner
        ]
        levels.append(pieces[0].append(pieces[1:]))
    names = [level.name for level in levels]
    return pd.MultiIndex.from_arrays(levels, names=names)


def _table(job: str, value: Any) -> pd.DataFrame:
    if dataframes.is_frame(value):
        return value  # type: ignore[no-any-return]
    if dataframes.is_series(value):
        return value.to_frame("result" if value.name is None else value.name)  # type: ignore[no-any-return]
    what = value if isinstance(value, str) and value.startswith("<cannot") else f"of type {type(value).__name__}"
    raise BadInput(
        message=f"concat() needs DataFrames or Series, but the result of {job} is {what}. "
        "to_frame() takes results of every type, one row each."
    )
