"""Series, DataFrames and arrays as items, without importing pandas or NumPy."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from nbqueue.errors import BadItems


def _class(library: str, name: str) -> type | None:
    module = sys.modules.get(library)
    found = getattr(module, name, None)
    return found if isinstance(found, type) else None


def _is(value: Any, library: str, *names: str) -> bool:
    classes = tuple(cls for name in names if (cls := _class(library, name)) is not None)
    return isinstance(value, classes)


def is_a(value: Any, library: str, name: str, *, exact: bool = False) -> bool:
    """Whether it is an instance of this class of a library that may not be imported; `exact`: not of a subclass."""
    cls = _class(library, name)
    return cls is not None and (type(value) is cls if exact else isinstance(value, cls))


def is_frame(value: Any) -> bool:
    """Whether it is a pandas DataFrame."""
    return _is(value, "pandas", "DataFrame")


def is_series(value: Any) -> bool:
    """Whether it is a pandas Series."""
    return _is(value, "pandas", "Series")


def is_groups(value: Any) -> bool:
    """Whether it is the result of `frame.groupby(...)`, whose items are pairs."""
    return _is(value, "pandas.api.typing", "DataFrameGroupBy", "SeriesGroupBy")


def is_axis(value: Any) -> bool:
    """Whether `grid` iterates over it: a list, tuple, range, array (of one dimension or more), Series or Index."""
    if isinstance(value, list | range) or type(value) is tuple:
        return True
    return _is(value, "pandas", "Series", "Index") or (_is(value, "numpy", "ndarray") and value.ndim > 0)


def is_iterable(value: Any) -> bool:
    """Whether it can be iterated; an array without dimensions cannot."""
    if _is(value, "numpy", "ndarray"):
        return bool(value.ndim)
    try:
        iter(value)
    except TypeError:
        return False
    return True


def labels(value: Any) -> tuple[list[Any] | None, tuple[str | None, ...]]:
    """(index labels, names of the index's levels) of a Series or DataFrame; None if the labels are positions."""
    index = value.index
    names = tuple(name if isinstance(name, str) else None for name in index.names)
    if type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1 and names == (None,):
        return None, ()
    return list(index), names


def column_names(frame: Any) -> tuple[str, ...]:
    """The names of a DataFrame's columns; raises BadItems for names that are no strings, and for duplicates."""
    names = list(frame.columns)
    if strange := [name for name in names if not isinstance(name, str)]:
        raise BadItems(
            message=f"Column names must be strings (got {strange[0]!r}), because columns are passed as keywords. "
            "Rename them with df.set_axis([...], axis=1), or give one column as items, as map(f, df[0])."
        )
    if doubles := [name for name in names if names.count(name) > 1]:
        raise BadItems(message=f"The column {doubles[0]!r} exists twice: rename or drop one.")
    return tuple(names)


def rows(frame: Any) -> Iterator[dict[str, Any]]:
    """A DataFrame's rows as keywords, read by column, so that an integer beside a float stays an integer."""
    names = list(frame.columns)
    columns: list[Iterable[Any]] = [frame[name] for name in names]
    if not columns:
        yield from ({} for _ in range(len(frame)))
        return
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))
