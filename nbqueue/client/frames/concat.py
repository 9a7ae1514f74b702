"""Results that are DataFrames or Series, stacked into one frame, with the arguments of each job beside its rows."""

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


def stack(batch: BatchRef, *, args: bool) -> pd.DataFrame:
    """The rows of all results in input order: arguments, then the results' own columns.

    The outer levels of the index are the batch's, the inner ones those of the results. Arguments over 1 kB and those
    that are tables or arrays are left out, unless `args`. Results that are None are left out, as pandas.concat does,
    and jobs without a result with a warning. Raises BadInput where a result is neither a DataFrame nor a Series, or
    all are None, and where columns cannot be put below each other.
    """
    import pandas as pd

    rows = of_batch(batch)
    ended = [place for place, outcome in enumerate(rows.outcomes) if outcome and outcome.state is State.FINISHED]
    values = {place: frame.value_of(rows.outcomes[place]) for place in ended}
    places = [place for place in ended if values[place] is not None] or ended
    found = [_table(rows.ids[place], values[place]) for place in places]
    if len(ended) < rows.n:
        warn(f"{rows.n - len(ended):,} of {rows.n:,} jobs of {batch.id} have no result here.")
    given = frame.arguments_of(rows, whole=args)
    if not args:
        given = {name: values for name, values in given.items() if not any(map(_is_large, values))}
    labels = frame.index_of(rows)[places]
    if not found:
        return pd.DataFrame({name: columns.column([]).array for name in given}, index=labels)
    try:
        made = pd.concat(_renamed(found, frozenset(given)), ignore_index=True)
    except Exception as why:
        raise BadInput(
            message=f"The results of {batch.id} cannot be put below each other ({type(why).__name__}: {why}). "
            "batch.results() gives them one by one."
        ) from why
    owners = [owner for owner, table in enumerate(found) for _ in range(len(table))]
    beside = {name: columns.column([values[places[owner]] for owner in owners]) for name, values in given.items()}
    whole = pd.concat([pd.DataFrame(beside, index=made.index), made], axis=1)
    return whole.set_axis(_index(labels[owners], [table.index for table in found]), axis=0)


def _is_large(value: Any) -> bool:
    """Whether a value is not to stand in each row: what was summarised, tables and arrays."""
    return isinstance(value, columns.Summary) or bool(getattr(value, "shape", ()))


def _renamed(found: list[pd.DataFrame], taken: frozenset[str]) -> list[pd.DataFrame]:
    """The tables with `res_` before names that arguments have, and with columns of one depth: names, or tuples."""
    import pandas as pd

    if len({table.columns.nlevels for table in found}) > 1:
        found = [table.set_axis(pd.Index(list(table.columns), tupleize_cols=False), axis=1) for table in found]
    own = {name for table in found for name in table.columns if isinstance(name, str)}
    names = {name: columns.free(name, taken | own, "res_") for name in own & taken}
    # By columns: rename() would look at each level of names that have several.
    return [table.rename(columns=names) if table.columns.nlevels == 1 else table for table in found]


def _index(labels: pd.Index[Any], inner: list[pd.Index[Any]]) -> pd.MultiIndex:
    """The levels of `labels`, then those of the results; where these differ in depth, the others' are missing."""
    import pandas as pd

    levels = [labels.get_level_values(level) for level in range(labels.nlevels)]
    for level in range(max(index.nlevels for index in inner)):
        name = next(index.names[level] for index in inner if level < index.nlevels)
        parts = [
            index.get_level_values(level)
            if level < index.nlevels
            else pd.Index([None] * len(index), dtype=object, name=name)
            for index in inner
        ]
        levels.append(parts[0].append(parts[1:]))
    names = [level.name for level in levels]
    return pd.MultiIndex.from_arrays(levels, names=names)


def _table(job: str, value: Any) -> pd.DataFrame:
    if dataframes.is_frame(value):
        return value  # type: ignore[no-any-return]
    if dataframes.is_series(value):
        return value.to_frame("result" if value.name is None else value.name)  # type: ignore[no-any-return]
    said = value if isinstance(value, str) and value.startswith("<cannot") else f"of type {type(value).__name__}"
    raise BadInput(
        message=f"concat() stacks DataFrames and Series, and the result of {job} is {said}. "
        "to_frame() takes results of every kind, one row each."
    )
