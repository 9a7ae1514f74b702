"""What a notebook's code finds around it, and so must find in a job: `__main__`, `display`, IPython's shell.

IPython is not imported: the worker may have none, and it takes half a second.
"""

from __future__ import annotations

import builtins
import functools
import re
import string
import sys
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn

from nbqueue import wire
from nbqueue.errors import BadInput

MOST = 10_000  # things looked at


def settle_in() -> None:
    """Gives this process a `__main__` of the notebook's own, and `display` among the builtins."""
    # A notebook's own classes name `__main__` as their module: they must not find the stable's names there.
    main = ModuleType("__main__")
    vars(main).update(__builtins__=__builtins__, __getattr__=_class)
    sys.modules["__main__"] = main
    builtins.display = display  # type: ignore[attr-defined]


# ---------------------------------------------------------------- __main__


def reveal(function: Callable[..., Any]) -> None:
    """Puts what `function` reaches of the notebook's names into `__main__`: pickle, typing and others look there.

    To be called again when the function was loaded again.
    """
    main = vars(sys.modules["__main__"])
    main |= {name: value for name, value in _names(function).items() if not name.startswith("__")}
    if getattr(function, "__module__", None) == "__main__":
        main[getattr(function, "__name__", "")] = function


def leave_main() -> None:
    """Takes all names out of `__main__`: those of another copy of the function are to come."""
    main = vars(sys.modules["__main__"])
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]


def _names(function: Any) -> dict[str, Any]:
    """The globals of the notebook, as far as functions name them: all that were pickled together share them."""
    waiting, seen = [function], dict[int, Any]()  # what was seen is kept, so that no id is given twice
    while waiting and len(seen) < MOST:
        thing = waiting.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            if isinstance(thing, FunctionType) and thing.__globals__.get("__name__") == "__main__":
                return thing.__globals__
            waiting += _inside(thing)
    return {}


def _inside(thing: Any) -> Iterator[Any]:
    if isinstance(thing, FunctionType | type):
        if not wire.by_reference(thing):
            yield from vars(thing).values()
            yield from getattr(thing, "__bases__", ())
            yield from getattr(thing, "__defaults__", None) or ()
            yield from (value for _, value in wire.closed_over(thing)) if isinstance(thing, FunctionType) else ()
    elif isinstance(thing, MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif not isinstance(thing, ModuleType):
        yield type(thing)
        attributes = getattr(thing, "__dict__", None)
        yield from attributes.values() if type(attributes) is dict else ()


def _class(name: str) -> type:
    """`__main__.name`, where that is a class of a cell that is here by other ways, as that of an argument."""
    known = [
        kind for kind in wire.known_classes().values() if (kind.__module__, kind.__qualname__) == ("__main__", name)
    ]
    if not known:
        raise AttributeError(f"module '__main__' has no attribute {name!r}")
    return known[-1]


# ---------------------------------------------------------------- IPython's names


def display(*objects: Any, raw: bool = False, display_id: Any = None, **how: Any) -> Any:
    """As IPython's, for a log: each object as text, on a line of its own."""
    del how
    for each in objects:
        text = each.get("text/plain", each) if raw and isinstance(each, dict) else repr(each)
        sys.stdout.write(f"{text}\n")
    return None if display_id is None else Shown()


class Shown:
    """What `display(x, display_id=True)` gives."""

    def display(self, *objects: Any, **how: Any) -> None:
        """Shows what is given."""
        display(*objects, **how)

    update = display


def get_ipython() -> Any:
    """IPython's shell where there is one, else what can stand for it."""
    found = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return Shell() if found is None else found


class Lines(list[str]):
    """The lines that a command printed, as IPython gives them: `.n` is the text, `.s` has spaces between the lines."""

    @property
    def l(self) -> list[str]:  # noqa: E743 - IPython's name
        """The lines."""
        return list(self)

    @property
    def n(self) -> str:
        """The lines as a text."""
        return "\n".join(self)

    @property
    def s(self) -> str:
        """The lines, separated by spaces."""
        return " ".join(self)


class Shell:
    """Stands for IPython's shell in a job: `!command` runs, with its output in the job's log; magics are refused."""

    @property
    def user_ns(self) -> dict[str, Any]:
        """The notebook's names, as far as the function reaches them."""
        return vars(sys.modules["__main__"])

    def system(self, command: str) -> None:
        """`!command`; its exit code is `_exit_code` in `__main__`."""
        import subprocess  # it imports `locale`, which then would be looked at after every call

        sys.stdout.flush()
        done = subprocess.run(_expanded(command, sys._getframe(1)), shell=True, check=False)  # noqa: S602, SLF001
        self.user_ns["_exit_code"] = done.returncode

    system_piped = system_raw = system

    def getoutput(self, command: str, split: bool = True, depth: int = 0) -> Lines | str:
        """`lines = !command`."""
        import subprocess

        text = _expanded(command, sys._getframe(1 + depth))  # noqa: SLF001
        done = subprocess.run(text, shell=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S602
        found = done.stdout.decode("utf-8", "replace")
        return Lines(found.splitlines()) if split else found

    def run_line_magic(self, magic_name: str, *_args: Any, **_how: Any) -> NoReturn:
        """Raises BadInput."""
        raise BadInput(
            message=f"%{magic_name} works in a notebook's cell, and not in a function that runs as a job. Write what "
            "it does in Python (time.perf_counter() for %time, os.chdir() for %cd), or use it outside of the function."
        )

    run_cell_magic = magic = run_line_magic

    def get_ipython(self) -> Shell:
        """Itself."""
        return self

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"get_ipython().{name}: a job has no notebook around it, but for `!command` and getoutput")


class _Names(string.Formatter):
    """Fills in expressions, as IPython does in `!ls {folder}`."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        """The value of an expression."""
        del args
        return eval(field_name, kwargs), field_name  # noqa: S307 - it stands in the user's own function


def _expanded(command: str, frame: FrameType) -> str:
    """`command` with `{expression}` and `$name` filled in from where it stands; as it is where that fails."""
    names = frame.f_globals | frame.f_locals
    try:
        text = _Names().vformat(command, (), names)
    except Exception:  # noqa: BLE001 - as IPython: braces of the shell's own
        return command
    return re.sub(r"\$(\$|[A-Za-z_]\w*)", lambda found: _dollar(found, names), text)


def _dollar(found: re.Match[str], names: dict[str, Any]) -> str:
    name = found[1]
    return "$" if name == "$" else str(names[name]) if name in names else found[0]
