"""Lists of Python values as columns: integers stay integers, and what is missing stays missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nbqueue import wire
from nbqueue.checks import size_text
from nbqueue.client import tables

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = 1_000  # bytes of a pickled argument, over which a frame shows a summary
WIDEST = 1_000  # columns that results may spread to; wider ones stay objects


class Missing:
    """Marks a cell without a value, which None need not be."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()


def column(values: list[Any]) -> pd.Series[Any]:
    """A column of `values`, in which MISSING and None are missing.

    Integers and booleans become int64 and bool, or Int64 and boolean where some are missing; text, floats and times
    become what pandas makes of them; all else stays an object.
    """
    import pandas as pd

    there = [value for value in values if value is not None and value is not MISSING]
    whole = len(there) == len(values)
    kind = _kind(there)
    if kind == "object":
        return _objects(values)
    plain = values if whole else [None if value is MISSING else value for value in values]
    dtypes = {"boolean": "bool" if whole else "boolean", "integer": "int64" if whole else "Int64"}
    try:
        if kind in dtypes:
            return pd.Series(plain, dtype=dtypes[kind])
        return pd.Series(plain)
    except (OverflowError, TypeError, ValueError):
        return _objects(values)  # integers beyond 64 bits, times beyond the calendar


def _kind(there: list[Any]) -> str:
    """`boolean`, `integer`, `plain` (pandas knows best) or `object`."""
    from pandas.api.types import infer_dtype

    if not there:
        return "object"
    inferred = infer_dtype(there, skipna=False)
    if inferred in {"boolean", "integer"}:
        return inferred
    plain = {"string", "floating", "mixed-integer-float", "datetime64", "datetime", "timedelta64", "timedelta"}
    return "plain" if inferred in plain else "object"


def _objects(values: list[Any]) -> pd.Series[Any]:
    import numpy as np
    import pandas as pd

    # Filled one by one: given whole, NumPy would look into lists and arrays.
    cells = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        cells[place] = None if value is MISSING else value
    return pd.Series(cells, dtype=object)


# ---------------------------------------------------------------- results


def spread(value: Any) -> dict[str, Any] | None:
    """A dict (of text keys), dataclass, named tuple or Series as columns, one level; None for everything else."""
    if type(value) in (int, float, str, bool, list, tuple, type(None)):
        return None
    if isinstance(value, Mapping):
        return dict(value) if value and all(isinstance(key, str) for key in value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if tables.is_series(value):
        cells = {str(key): cell for key, cell in value.items()}
        return cells if len(cells) == len(value) else None
    return None


def _spread(value: Any) -> dict[str, Any] | None:
    try:
        return spread(value)
    except Exception:  # noqa: BLE001 - methods of the user's class, which may raise anything: it stays whole
        return None


def results(values: list[Any], taken: frozenset[str]) -> dict[str, list[Any]]:
    """Columns of results: `result` for single values, one for each key of those that spread.

    A key that is `taken` gets `res_`.
    """
    spreads = [_spread(value) for value in values]
    names = list(dict.fromkeys(name for row in spreads if row for name in row))
    if not names or len(names) > WIDEST:
        return {"result": values}
    found: dict[str, list[Any]] = {}
    rest = [value if row is None else MISSING for row, value in zip(spreads, values, strict=True)]
    if any(value is not MISSING and value is not None for value in rest):
        found["result"] = rest
    for name in names:
        found[free(name, taken | found.keys(), "res_")] = [
            MISSING if row is None else row.get(name, MISSING) for row in spreads
        ]
    return found


def free(name: str, taken: frozenset[str] | set[str], prefix: str) -> str:
    """`name`, with as many prefixes as it takes to be free."""
    while name in taken:
        name = prefix + name
    return name


# ---------------------------------------------------------------- arguments


def summary(value: Any) -> Any:
    """`value`, or some words on it where it is over SUMMARY bytes."""
    try:
        size = wire.measured(value)
    except Exception:  # noqa: BLE001 - any class may refuse; then it is shown as it is
        return value
    if size <= SUMMARY:
        return value
    if isinstance(value, str):
        return f"{value[:60]}... ({len(value):,} characters)"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        extent = " x ".join(map(str, shape))
    else:
        extent = f"{len(value):,} items" if hasattr(value, "__len__") else ""
    return f"<{type(value).__name__} {extent}, {size_text(size)}>".replace(" ,", ",")
