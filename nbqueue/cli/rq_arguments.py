"""The arguments of `nbqueue enqueue`, in RQ's grammar.

text        a text                  key=text       the same as a keyword
:json       JSON                    key:=json
%literal    a Python literal        key%=literal
@file       a text from a file; also after any of the above, as `key:=@config.json`
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nbqueue.errors import BadInput

_KEYWORD = re.compile(r"([^\W\d]\w*)(:|%)?=")
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ":": ("JSON", json.loads),
    "%": ("a Python literal", ast.literal_eval),
}
_LIKE = {":": ":3, :'\"text\"' or key:=[1,2]", "%": "%3, %'\"text\"' or key%='(1,2)'"}


def parse(arguments: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """`(args, kwargs)`. Raises BadInput that names the argument."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in arguments:
        keyword = _KEYWORD.match(argument)
        if keyword is None:
            prefix = argument[:1] if argument[:1] in _READERS else ""
            args.append(_value(prefix, argument[len(prefix) :], argument))
            continue
        name, prefix = keyword[1], keyword[2] or ""
        if name in kwargs:
            raise BadInput(message=f"The keyword {name!r} is given twice; give it once.")
        kwargs[name] = _value(prefix, argument[keyword.end() :], argument)
    return args, kwargs


def _value(prefix: str, text: str, argument: str) -> Any:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as why:
            raise BadInput(
                message=f"The argument {argument!r} names a file that cannot be read: {why}. "
                f"For a text that begins with @, write %'\"{text}\"'."
            ) from why
    if not prefix:
        return text
    what, read = _READERS[prefix]
    try:
        return read(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as why:
        detail = "" if prefix == "%" else f" ({why})"  # messages of Python's parser do not help
        raise BadInput(message=f"The argument {argument!r} is not {what}{detail}; examples: {_LIKE[prefix]}.") from why
