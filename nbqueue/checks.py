"""Validating user input: names, durations, sizes, options; and helpers for messages."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from nbqueue.errors import BadName, BadOption

DAY = 86_400.0
YEAR = 365 * DAY
LONGEST = 100 * YEAR  # the longest duration that is accepted
OFF = "off"  # instead of a folder: none

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+\-]{0,99}\Z")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?\Z")


def check_name(what: str, name: object) -> str:
    """`name`, if it is valid in a key; raises BadName."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise BadName(what=what, name=brief(name, 100), spaces="")
    return name


def check_title(what: str, name: object) -> str:
    """`name`, if it is a valid batch name: as check_name, but with spaces inside. Raises BadName."""
    if not isinstance(name, str) or not _NAME.match(name.replace(" ", "_")) or name != name.strip():
        raise BadName(what=what, name=brief(name, 100), spaces=", spaces")
    return name


def check_queue(what: str, name: object) -> str:
    """`name`, if it is a valid queue name (colons and spaces as in RQ). Raises BadName or BadOption."""
    if isinstance(name, str) and is_queue(name):
        return name
    if isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable():
        raise BadOption(
            message=f"{what} {name!r} cannot be used: it must not contain a comma or `*`, or begin or end with a space."
        )
    return check_name(what, name)


def is_queue(text: str) -> bool:
    """Whether check_queue accepts `text`."""
    return 0 < len(text) <= 100 and text.isprintable() and text == text.strip() and not {",", "*"} & set(text)


def is_name(text: str) -> bool:
    """Whether check_name accepts `text`."""
    return _NAME.match(text) is not None


def brief(value: object, most: int = 80) -> str:
    """The repr of a value in one line, shortened to `most` characters, for a message. Never raises."""
    try:
        shown = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - the user's __repr__ may raise anything, and an integer may have too many digits
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def seconds(option: str, value: object) -> float:
    """A duration as seconds: a number, a timedelta, digits, or text such as '3m', '1h30m', '2d'. Raises BadOption."""
    found = _seconds(value)
    if found is None:
        raise BadOption(
            message=f"{option}={brief(value)} is not a duration: give seconds, or text such as '90s', '3m', '1h30m' or "
            "'2d'."
        )
    if not abs(found) <= LONGEST:
        raise BadOption(message=f"{option} is too long: {LONGEST / YEAR:.0f} years at most.")
    return found


def _seconds(value: object) -> float | None:
    """As seconds, but None if it is not a duration."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    value = _plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return float(max(-LONGEST - 1, min(value, LONGEST + 1)))  # a float may not hold it
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if not isinstance(value, str):
        return None
    match = _DURATION.match(value.strip())
    if match and value.strip():
        days, hours, minutes, rest = (float(part or 0) for part in match.groups())
        return days * DAY + hours * 3600 + minutes * 60 + rest
    return float(value) if re.fullmatch(r"-?\d+(\.\d+)?", value.strip()) else None


def _plain(value: object) -> object:
    """NumPy's numbers as Python's; all else unchanged."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _positive(option: str, value: object) -> float | None:
    if value is None:
        return None
    if (found := seconds(option, value)) <= 0:
        raise BadOption(message=f"{option}={brief(value)} must be over 0 seconds; None means no limit.")
    return found


def _grace(option: str, value: object) -> float:
    if (found := seconds(option, value)) < 0:
        raise BadOption(message=f"{option}={brief(value)} must not be negative.")
    return found


def _lifetime(option: str, value: object) -> float:
    value = _plain(value)
    if value is None or (isinstance(value, int | float) and value == -1):
        return YEAR
    if (found := seconds(option, value)) < 0:
        raise BadOption(message=f"{option}={brief(value)} must be seconds, 0 or more; -1 keeps results for a year.")
    return min(found, YEAR)


def _flag(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadOption(message=f"{option}={brief(value)} must be True or False.")
    return value


def _count(option: str, value: object) -> int:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadOption(message=f"{option}={brief(value)} must be a whole number of 1 or more.")
    return value


def _result_size(option: str, value: object) -> int | None:
    if value is None:
        return None
    return size(option, value) if isinstance(value, str) else _count(option, value)


def _seed(option: str, value: object) -> int | None:
    if value is None:
        return None
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise BadOption(message=f"{option}={brief(value)} must be a whole number from 0 to 2**63 - 1.")
    return value


def _tolerance(option: str, value: object) -> float | None:
    if value is None:
        return None
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise BadOption(message=f"{option}={brief(value)} must be a number of jobs, or a fraction below 1.")
    return value


def _names(option: str, value: object) -> tuple[str, ...]:
    if (
        not isinstance(value, Sequence | AbstractSet | Mapping)
        or isinstance(value, str)
        or not all(isinstance(name, str) for name in value)
    ):
        raise BadOption(message=f'{option}={brief(value)} must be a list of variable names, as env=["API_KEY"].')
    return tuple(value)


def _inline(option: str, value: object) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value == "collect"):
        return value
    raise BadOption(message=f"{option}={brief(value)} must be True, False or 'collect'.")


def _optional_flag(option: str, value: object) -> bool | None:
    return None if value is None else _flag(option, value)


def _optional_title(option: str, value: object) -> str | None:
    return None if value is None else check_title(option, value)


def _optional_name(option: str, value: object) -> str | None:
    return None if value is None else check_name(option, value)


def is_url(root: str) -> bool:
    """Whether this is a URL rather than the path of a folder."""
    return "://" in root


def spill_root(option: str, value: object) -> str | None:
    """A folder, as an absolute path, or a URL for fsspec; "off" for none. Raises BadOption."""
    if value is None:
        return None
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(text, str) or not text.strip() or "\0" in text or len(text) > 1000:
        raise BadOption(message=f"{option}={brief(value)} must be a folder, or a URL such as 's3://bucket/folder'.")
    if text in {"0", OFF}:
        return OFF
    scheme, colon, rest = text.partition("://")
    if not colon or scheme == "file":
        return str(Path(rest if colon else text).expanduser().absolute())
    if scheme in {"memory", "data"}:
        raise BadOption(
            message=f"{option}={brief(value)}: other processes cannot read it. Name a folder that all workers share."
        )
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise BadOption(message=f"{option}= contains a password, which every reader of a batch can see: leave it out.")
    return text.rstrip("/")


def _text(option: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise BadOption(message=f"{option}={brief(value)} must be a string of at most 1,000 characters.")
    return value


def _meta(option: str, value: object) -> dict[str, Any] | None:
    if value is not None and (not isinstance(value, dict) or not all(isinstance(key, str) for key in value)):
        raise BadOption(message=f"{option}={brief(value)} must be a dict with strings as keys.")
    return value


def _any(_option: str, value: object) -> object:
    """Accepts anything: the client checks the value before it submits."""
    return value


CHECKS: dict[str, Any] = {
    "queue": check_queue,
    "name": _optional_title,
    "update": _flag,
    "fresh": _flag,
    "timeout": _positive,
    "grace": _grace,
    "result_ttl": _lifetime,
    "failure_ttl": _lifetime,
    "ttl": _positive,
    "at_front": _flag,
    "isolate": _flag,
    "slice": _grace,
    "preload": _flag,
    "pin": _optional_flag,
    "max_result": _result_size,
    "spill": spill_root,
    "max_failed": _tolerance,
    "seed": _seed,
    "env": _names,
    "progress": _optional_flag,
    "inline": _inline,
    "job_id": _optional_name,
    "unique": _flag,
    "description": _text,
    "meta": _meta,
    "depends_on": _any,
    "retry": _any,
    "repeat": _any,
    "on_success": _any,
    "on_failure": _any,
    "on_stopped": _any,
}


# Characters that move the cursor, change colours or reverse the text, except tab and newline.
_CONTROLS = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for span in ((0, 9), (11, 32), (127, 160), (0x200E, 0x2010), (0x202A, 0x202F), (0x2066, 0x206A))
    for code in range(*span)
}


def inert(text: str) -> str:
    """`text` with escaped control characters, safe to print in a terminal. A carriage return becomes a newline."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)


def warn(message: str) -> None:
    """A UserWarning that points at the user's line, not at a line of nbqueue."""
    depth, frame = 2, sys._getframe(1)  # noqa: SLF001 - as warnings itself does
    while frame is not None and f"{frame.f_globals.get('__name__')}.".startswith("nbqueue."):
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, stacklevel=depth)


def counted(number: int, word: str) -> str:
    """A number and a noun: `1 job`, `1,000 jobs`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def in_units(seconds: float, days: str, hours: str, minutes: str) -> str:
    """A duration in the largest of these units of which it has at least two; empty if there is none."""
    for size, unit in ((DAY, days), (3600.0, hours), (60.0, minutes)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return ""


def size_text(count: float) -> str:
    """A number of bytes for people, in powers of 1024: `64 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if count == int(count) else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\Z", re.IGNORECASE)
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(option: str, value: int | str | None) -> int | None:
    """A size in bytes: a number, or text such as '500MB' or '2GB' (powers of 1024). Raises BadOption."""
    if value is None:
        return None
    match = _SIZE.match(str(value).strip()) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise BadOption(message=f"{option}={brief(value)} is not a size: give bytes, or text such as '500MB' or '2GB'.")
    return int(float(match[1]) * _BYTES[match[2].lower()])


def is_installed(path: str) -> bool:
    """Whether a file belongs to an installed package: a folder above it is site-packages or dist-packages."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)


def check_errors(errors: object) -> None:
    """Raises BadOption for an unknown value of `results(errors=)`."""
    if errors not in {"raise", "return", "skip"}:
        raise BadOption(message=f"errors={brief(errors)} must be 'raise', 'return' or 'skip'.")
