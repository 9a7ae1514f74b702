"""Turning the items of `map`, `starmap` and `grid` into calls.

`map` makes one positional argument of each item, `starmap` spreads tuples and dicts, `grid` crosses axes, and rows of a
DataFrame become keywords. Items without a length are read later, on a thread.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from nbqueue import perform
from nbqueue.checks import brief, size_text, warn
from nbqueue.client.calls import dataframes
from nbqueue.client.calls.function import DescribedFunction
from nbqueue.errors import BadItems, NotPicklable, TooLarge
from nbqueue.model import WARN_ARGUMENTS, Options

OPTIONS = frozenset({*Options.__struct_fields__, "retries", "job_timeout"})
_UNEVEN = re.compile(r"zip\(\) argument \d+ is (?:shorter|longer) than argument")
Call = tuple[tuple[Any, ...], dict[str, Any], Any]  # positional arguments, keywords, index label (None: none)


@dataclass(frozen=True)
class Calls:
    """The calls of a batch, in order; `n` is None while it is not known.

    `columns` are the names of positional arguments in a frame, then those of keywords.
    """

    rows: Iterable[Call]
    n: int | None
    columns: tuple[str, ...]
    labeled: bool = False
    index_names: tuple[str | None, ...] = ()
    alone: bool = False  # a single call, from submit


# ---------------------------------------------------------------- the verbs' items


def calls_from_map(function: DescribedFunction, items: tuple[Any, ...]) -> Calls:
    """One call per item; several iterables are zipped strictly. Raises BadItems."""
    if not items:
        raise BadItems(message=f"There are no items: give them after the function, as map({function.label}, items).")
    if any(dataframes.is_frame(item) for item in items):
        return _framed(function, items)
    for position, item in enumerate(items):
        _check(item, position, function.label)
    if len(items) == 1 and dataframes.is_groups(items[0]):
        warn(
            f"The items of a groupby are pairs (key, group), and {function.label} is called with one pair each. "
            f"To pass groups only: map({function.label}, [group for _, group in ...]). "
            "To pass key and group as two arguments: starmap."
        )
    n = _length(items)
    labels, names = next(((*dataframes.labels(item),) for item in items if dataframes.is_series(item)), (None, ()))
    rows: Iterable[Call]
    if labels is not None:
        rows = ((args, {}, label) for args, label in zip(_zipped(items), labels, strict=True))
    else:
        rows = ((args, {}, None) for args in _zipped(items))
    return Calls(rows, n, _columns(function, n, len(items)), labels is not None, names)


def calls_from_starmap(function: DescribedFunction, items: Any) -> Calls:
    """One call per item: tuples become positional arguments, dicts keywords. Raises BadItems."""
    if dataframes.is_frame(items):
        return _framed(function, (items,))
    _check(items, 0, function.label)
    labels, names = dataframes.labels(items) if dataframes.is_series(items) else (None, ())
    spread = (_spread(index, item) for index, item in enumerate(items))
    rows: Iterable[Call]
    if labels is not None:
        rows = ((args, kwargs, label) for (args, kwargs), label in zip(spread, labels, strict=True))
    else:
        rows = ((args, kwargs, None) for args, kwargs in spread)
    n = len(items) if hasattr(items, "__len__") else None
    return Calls(rows, n, _columns(function, n, 0), labels is not None, names)


def calls_from_grid(function: DescribedFunction, axes: dict[str, Any]) -> Calls:
    """Every combination of the axes, the last one fastest; other values are constant."""
    crossed = {name: list(value) if dataframes.is_axis(value) else (value,) for name, value in axes.items()}
    n = 1
    for values in crossed.values():
        n *= len(values)
    names = tuple(crossed)
    rows = (((), dict(zip(names, values, strict=True)), None) for values in itertools.product(*crossed.values()))
    return Calls(rows, n, _ordered(function, names))


def single(function: DescribedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Calls:
    """A single call."""
    columns = _columns(function, 1, len(args))
    named = (*columns, *(name for name in kwargs if name not in columns))
    return Calls([(args, kwargs, None)], 1, named, alone=True)


def _framed(function: DescribedFunction, items: tuple[Any, ...]) -> Calls:
    if len(items) > 1:
        raise BadItems(
            message="A DataFrame must be the only iterable, because its rows are passed as keywords. Add the other "
            "values to it as columns, or give the columns one by one, as map(f, df['a'], values)."
        )
    frame = items[0]
    names = dataframes.column_names(frame)
    _check_columns(function, names)
    labels, index_names = dataframes.labels(frame)
    tagged = labels if labels is not None else itertools.repeat(None, len(frame))
    rows = (((), row, label) for row, label in zip(dataframes.rows(frame), tagged, strict=True))
    return Calls(rows, len(frame), _ordered(function, names), labels is not None, index_names)


def _check_columns(function: DescribedFunction, names: tuple[str, ...]) -> None:
    if function.signature is None:
        return
    parameters = function.signature.parameters.values()
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    strange = [name for name in names if name not in takes]
    if strange and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        keep = ", ".join(repr(name) for name in names if name in takes)
        raise BadItems(
            message=f"{function.label}{function.signature} does not take the columns {', '.join(map(repr, strange))}. "
            f"Leave them out, as map({function.label}, df[[{keep}]]); to pass one column as items, df['column']."
        )


# ---------------------------------------------------------------- checks


def _check(items: Any, position: int, label: str) -> None:
    where = "items" if position == 0 else f"iterable {position + 1}"
    if isinstance(items, str | bytes | bytearray | memoryview):
        what, remedy = type(items).__name__, f"for one item, wrap it: map({label}, [{brief(items)}])"
    elif isinstance(items, Mapping):
        what, remedy = "a mapping", "use list(d), list(d.values()) or list(d.items()); starmap spreads a list of dicts"
    elif isinstance(items, AbstractSet) and not isinstance(items, KeysView | ItemsView):
        what, remedy = "a set", "a set has no order, and rows need one: use sorted(items)"
    elif not dataframes.is_iterable(items):
        what, remedy = type(items).__name__, f"give a list of items; for one call, use submit({label}, ...)"
    else:
        return
    raise BadItems(message=f"The {where} of {label} cannot be {what}: {remedy}.")


def _length(items: tuple[Any, ...]) -> int | None:
    lengths = [len(item) for item in items if hasattr(item, "__len__")]
    if len(set(lengths)) > 1:
        raise BadItems(message=f"The iterables have different lengths: {', '.join(map(str, lengths))}.")
    return lengths[0] if len(lengths) == len(items) else None


def _zipped(items: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if len(items) == 1:
        yield from ((item,) for item in items[0])
        return
    try:
        yield from zip(*items, strict=True)
    except ValueError as why:
        own = why.__traceback__
        if not _UNEVEN.match(str(why)) or own is None or own.tb_next is not None:
            raise  # an iterable's own error
        raise BadItems(message=f"The iterables have different lengths ({why}).") from why


def _spread(index: int, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(item, Mapping):
        if strange := [key for key in item if not isinstance(key, str)]:
            raise BadItems(message=f"Item {index} has the key {strange[0]!r}: keywords must be strings.")
        return (), dict(item)
    if isinstance(item, tuple | list):
        return tuple(item), {}
    raise BadItems(
        message=f"Item {index} is {brief(item)}: starmap spreads tuples over positions and dicts over keywords. "
        "For one argument per item use map."
    )


def bound(function: DescribedFunction, call: Call, what: str = "the first item") -> None:
    """Raises BadItems unless `call` fits the function's signature."""
    if function.signature is None:
        return
    args, kwargs, _ = call
    try:
        function.signature.bind(*args, **kwargs)
    except TypeError as why:
        hint = ""
        if len(args) == 1 and isinstance(args[0], tuple | Mapping) and not kwargs:
            hint = " To spread tuples or dicts over the parameters, use starmap."
        ours = [name for name in kwargs if name in OPTIONS and name not in function.signature.parameters]
        if ours:
            hint = f" {ours[0]!r} is an option of nbqueue: give it before the call, as "
            hint += f"nbqueue.options({ours[0]}={brief(kwargs[ours[0]])}).grid(...) or .submit(...)."
        raise BadItems(message=f"{function.label}{function.signature} cannot take {what}: {why}.{hint}") from why


# ---------------------------------------------------------------- columns


def positional(function: DescribedFunction) -> tuple[str, ...]:
    """The names of the parameters that take positional arguments."""
    if function.signature is None:
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in function.signature.parameters.values() if p.kind in kinds)


def _columns(function: DescribedFunction, n: int | None, used: int) -> tuple[str, ...]:
    names = positional(function)
    names += tuple(f"arg_{position}" for position in range(len(names), used))
    return names[:used] if n == 0 and used else names


def _ordered(function: DescribedFunction, names: tuple[str, ...]) -> tuple[str, ...]:
    if function.signature is None:
        return names
    known = [name for name in function.signature.parameters if name in names]
    return (*known, *(name for name in names if name not in known))


# ---------------------------------------------------------------- payloads


def payloads(function: DescribedFunction, calls: Calls) -> Iterator[bytes]:
    """Each call as bytes; the first is checked against the signature. Errors name the item."""
    warned = False
    pack: Callable[..., bytes] = perform.pack
    for index, call in enumerate(calls.rows):
        if index == 0:
            bound(function, call, "these arguments" if calls.alone else "the first item")
        args, kwargs, label = call
        try:
            payload = pack(args, kwargs, label)
        except Exception as why:
            raise _refusal(_what(function, index, call, why, alone=calls.alone), why) from why
        if len(payload) > WARN_ARGUMENTS and not warned:
            warned = True
            size = size_text(len(payload))
            what = "The call" if calls.alone else f"Item {index}"
            warn(
                f"{what} of {function.label} is {size}: the arguments of every job go through the server. "
                "Pass a path, or what the job can create it from."
            )
        yield payload


def _what(function: DescribedFunction, index: int, call: Call, why: Exception, *, alone: bool) -> str:
    """The item or argument at fault; a single call has no item number."""
    name = _culprit(function, call, too_large=isinstance(why, TooLarge))
    if alone:
        return f"The argument {name} of {function.label}" if name else f"The call of {function.label}"
    return f"Item {index} of {function.label}" + (f" (argument {name})" if name else "")


def _refusal(what: str, why: Exception) -> Exception:
    if isinstance(why, TooLarge):
        remedy = "Pass a path, or what the job can create it from."
        return TooLarge(what=what, limit=why.facts["limit"], remedy=remedy)
    remedy = "Pass what it is made from (a path, a URL, plain values), and create it inside the function."
    return NotPicklable(what=what, why=f"{type(why).__name__}: {why}", remedy=remedy)


def _culprit(function: DescribedFunction, call: Call, *, too_large: bool) -> str:
    args, kwargs, _ = call
    if too_large:
        return ""
    names = positional(function)
    named = [
        (names[position] if position < len(names) else str(position), value) for position, value in enumerate(args)
    ]
    for name, value in [*named, *kwargs.items()]:
        try:
            perform.pack((value,), {}, None)
        except Exception:  # noqa: BLE001 - any error means no
            return repr(name)
    return ""
