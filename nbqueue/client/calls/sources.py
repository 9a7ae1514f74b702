"""The source lines of functions that are pickled by value: a notebook's cells are no files that others could read.

They are part of the function record, so that tracebacks show them on every machine and in a new kernel. Only the lines
of the functions are sent, not the cells around them.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterable
from functools import lru_cache
from types import CodeType

MOST = 32_000  # characters per function record; longer sources are not sent


def source_lines(codes: Iterable[CodeType]) -> dict[str, list[tuple[int, str]]]:
    """File name -> (number of the first line, lines as one text) of each function whose code is among `codes`."""
    found: dict[str, list[tuple[int, str]]] = {}
    left = MOST
    for code in codes:
        first, last = _span(code)
        text = "".join(linecache.getlines(code.co_filename)[first - 1 : last])
        if text and len(text) <= left:
            left -= len(text)
            found.setdefault(code.co_filename, []).append((first, text))
    return found


@lru_cache(maxsize=1024)
def _span(code: CodeType) -> tuple[int, int]:
    """First and last line of a function, with decorators and inner functions."""
    last = max((line for *_, line in code.co_lines() if line), default=code.co_firstlineno)
    inner = [_span(constant)[1] for constant in code.co_consts if isinstance(constant, CodeType)]
    return code.co_firstlineno, max(last, *inner, code.co_firstlineno)
