"""Lists of Python values as pandas columns: integers stay integers, and missing values stay missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbqueue import wire
from nbqueue.checks import size_text
from nbqueue.client.calls import dataframes

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = 1_000  # bytes of a pickled argument, over which a frame shows a summary
EXACT = 2**53  # up to here a float holds every integer
WIDEST = 1_000  # columns that results may spread to; wider results stay objects


class Missing:
    """Marks a cell without a value: None may be a value."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()


class Summary(str):
    """The text that stands for a large argument."""

    __slots__ = ()


def column(values: list[Any]) -> pd.Series[Any]:
    """A column of `values`. MISSING and None are missing values, and so are NaN, NaT and NA beside other values.

    Numbers and booleans get a numeric dtype, also with missing values: then Int64, UInt64, boolean or float64. pandas
    chooses the dtype of text and times; everything else stays an object. No value changes: integers that a float
    cannot hold exactly do not become floats.
    """
    import numpy as np
    import pandas as pd

    kind, whole = _kind(values)
    if kind == "object":
        return _objects(values)
    plain = values if whole else [None if is_missing(value) else value for value in values]
    try:
        if kind == "integer":
            return _integers(plain, "int64" if whole else "Int64")
        if kind == "boolean":
            return pd.Series(plain, dtype="bool" if whole else "boolean")
        if kind == "floating":
            return pd.Series([np.nan if value is None else value for value in plain])
        return text(plain) if kind == "string" else pd.Series(plain)
    except (OverflowError, TypeError, ValueError):
        return _objects(values)  # integers beyond 64 bits, times beyond the calendar


def text(values: Sequence[str | None]) -> pd.Series[Any]:
    """A column of text, with the same dtype and missing value even if all values are missing."""
    import pandas as pd

    return pd.Series(values, dtype=pd.Series([""]).dtype)


def is_missing(value: Any) -> bool:
    """Whether this is a missing value: MISSING, None, NaN, NaT or NA."""
    import numpy as np
    import pandas as pd

    if isinstance(value, float | np.floating | np.datetime64 | np.timedelta64):
        return bool(value != value)  # noqa: PLR0124 - true for NaN
    return value is None or value is MISSING or value is pd.NA or value is pd.NaT


_PLAIN = {"string", "datetime64", "datetime", "timedelta64", "timedelta"}  # pandas chooses the dtype


def _kind(values: list[Any]) -> tuple[str, bool]:
    """(`boolean`, `integer`, `floating`, one of _PLAIN, or `object`; whether nothing is missing)."""
    from pandas.api.types import infer_dtype

    kind = infer_dtype(values, skipna=False)
    if kind in {"boolean", "integer", "floating", "string"}:
        return kind, True
    there = [value for value in values if not is_missing(value)]
    if not there:
        return "floating" if any(isinstance(value, float) for value in values) else "object", False
    kind = infer_dtype(there, skipna=False)
    if kind == "mixed-integer-float" and all(value == float(value) for value in there if abs(value) > EXACT):
        kind = "floating"
    return kind if kind in {"boolean", "integer", "floating", *_PLAIN} else "object", len(there) == len(values)


def _integers(plain: list[Any], dtype: str) -> pd.Series[Any]:
    import pandas as pd

    try:
        return pd.Series(plain, dtype=dtype)
    except OverflowError:
        return pd.Series(plain, dtype={"int64": "uint64", "Int64": "UInt64"}[dtype])


def _objects(values: list[Any]) -> pd.Series[Any]:
    import numpy as np
    import pandas as pd

    # Filled one by one: np.array(values) would unpack lists and arrays.
    cells = np.empty(len(values), dtype=object)
    for position, value in enumerate(values):
        cells[position] = None if value is MISSING else value
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
    if dataframes.is_series(value):
        cells = {str(key): cell for key, cell in value.items()}
        return cells if len(cells) == len(value) else None
    return None


def _spread(value: Any) -> dict[str, Any] | None:
    try:
        return spread(value)
    except Exception:  # noqa: BLE001 - methods of the user's class may raise anything; the value is then not spread
        return None


def results(values: list[Any], taken: frozenset[str]) -> dict[str, list[Any]]:
    """Columns of results: `result` for single values, one column per key of dicts and the like.

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
    """`name`, prefixed until it is not taken."""
    while name in taken:
        name = prefix + name
    return name


# ---------------------------------------------------------------- arguments


def summary(value: Any) -> Any:
    """`value`, or a short description if it is over SUMMARY bytes."""
    try:
        size = wire.measured(value)
    except Exception:  # noqa: BLE001 - pickling may raise anything; the value is then shown as it is
        return value
    if size <= SUMMARY:
        return value
    if isinstance(value, str):
        return Summary(f"{value[:60]}... ({len(value):,} characters)")
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        extent = " x ".join(map(str, shape))
    else:
        extent = f"{len(value):,} items" if hasattr(value, "__len__") else ""
    return Summary(f"<{type(value).__name__} {extent}, {size_text(size)}>".replace(" ,", ","))
