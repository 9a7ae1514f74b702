"""What there is to ask of the Jupyter kernel that this code may run in."""

from __future__ import annotations

import sys
from typing import Any


def shell() -> Any:
    """IPython's shell in a Jupyter kernel, else None. IPython is not imported for the question."""
    module = sys.modules.get("IPython")
    found = module.get_ipython() if module is not None else None
    return found if getattr(found, "kernel", None) is not None else None


def cell() -> int | None:
    """What tells the running execution from others; None outside of notebooks."""
    found = shell()
    return None if found is None else int(found.execution_count)


def number() -> int | None:
    """The number of the cell that runs, as it stands beside it; None outside of notebooks."""
    found = shell()  # whose execution_count is one ahead, in some versions
    return None if found is None else len(found.history_manager.input_hist_parsed) - 1


def origin() -> str | None:
    """What tells the cell that runs from others, however often it is run: its id, or else its text."""
    found = shell()
    if found is None:
        return None
    message = found.kernel.get_parent("shell") or {}
    cell_id = message.get("metadata", {}).get("cellId")
    return str(cell_id or message.get("content", {}).get("code", ""))


def attended() -> bool:
    """Whether someone sits at this notebook: programs that run notebooks say that nobody can answer a question."""
    found = shell()
    message = {} if found is None else found.kernel.get_parent("shell") or {}
    return found is not None and bool(message.get("content", {}).get("allow_stdin", True))


def cell_of(file: str) -> int | None:
    """The number of this notebook's cell whose code has this file name; None if it is none."""
    found = shell()
    name = getattr(getattr(found, "compile", None), "format_code_name", lambda _: None)(file)
    label = file if name is None else name[1]  # ("Cell", "In[3]")
    digits = label.removeprefix("In[").removesuffix("]")
    return int(digits) if label.startswith("In[") and digits.isdecimal() else None
