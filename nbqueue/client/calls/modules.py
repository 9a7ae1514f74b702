"""The user's own modules that a function can reach, and the digests of their sources.

An edited `mylib.py` must never run as old code, so the digest of every such file is part of the stable's key. "Own" is
what lies neither in the standard library nor in site-packages. Sources are parsed, not executed, so that a module that
is imported late, inside a function, counts as well.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from nbqueue.checks import is_installed

MOST = 2_000  # files; who reaches more has pointed sys.path at a whole installation

_seen: dict[str, tuple[tuple[int, int], str, tuple[str, ...]]] = {}
_foreign: set[str] = set()
_fresh: dict[str, tuple[int, str]] = {}  # module -> its import here, and the digest with which it was last compared


def digests(names: Iterable[str]) -> dict[str, str]:
    """Module name -> SHA-256 (hex) of its file, for the own modules among `names` and all that they import."""
    found: dict[str, str] = {}
    waiting, visited = list(names), set[str]()
    while waiting and len(found) < MOST:
        name = waiting.pop()
        if name in visited:
            continue
        visited.add(name)
        path = own_file(name)
        if path is None:
            continue
        read = _read(path, name)
        if read is not None:
            found[name], imports = read
            waiting += imports
            waiting += line(name)[:-1]
    return dict(sorted(found.items()))


def outdated(found: dict[str, str]) -> list[str]:
    """Those of `found` (as digests gives them) whose file is not what this process has imported; each is named once.

    Workers run the file as it is now, and this process what it was: they may give other numbers.
    """
    names = []
    for name, digest in found.items():
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        # Other loaders (of a test runner, say) run something else than the file on purpose.
        if module is None or spec is None or type(spec.loader) is not importlib.machinery.SourceFileLoader:
            continue
        if _fresh.get(name) != (id(spec), digest):
            _fresh[name] = id(spec), digest
            if _differs(module, str(spec.origin)):
                names.append(name)
    return names


def _differs(module: ModuleType, path: str) -> bool:
    """Whether a plain function of the module is not what its file says."""
    try:
        code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return True
    said: dict[str, list[CodeType]] = {}  # a name may be defined more than once: under conditions, or overloaded
    for part in code.co_consts:
        if isinstance(part, CodeType):
            said.setdefault(part.co_name, []).append(part)
    for name, parts in said.items():
        own = vars(module).get(name)
        if not isinstance(own, FunctionType) or own.__code__.co_qualname != name or own.__code__.co_filename != path:
            continue  # decorated, say
        if _bare(own.__code__) not in map(_bare, parts):
            return True
    return False


def _bare(code: CodeType) -> CodeType:
    """Code without its lines, which a comment changes."""
    parts = tuple(_bare(part) if isinstance(part, CodeType) else part for part in code.co_consts)
    return code.replace(co_consts=parts, co_firstlineno=1, co_linetable=b"")


def line(name: str) -> list[str]:
    """The packages around a module, the outermost first, and itself."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def own_file(name: str) -> str | None:
    """The file of module `name`, if it is one of the user's own; None for all others and for what is not found."""
    if name.partition(".")[0] in {"nbqueue", "__main__", "__mp_main__", ""}:
        return None
    path = _locate(name)
    return path if path is not None and _is_own(path) else None


def hidden(names: Iterable[str], folders: Sequence[str]) -> dict[str, str]:
    """Module name -> SHA-256 (hex) of its file, for those of the standard library that have a namesake in `folders`.

    This process has imported the library's, and a job would find the other one first.
    """
    found = {}
    for name in {name.partition(".")[0] for name in names} & sys.stdlib_module_names:
        path, spec = getattr(sys.modules.get(name), "__file__", None), getattr(sys.modules.get(name), "__spec__", None)
        if path is None or not _in_library(path) or getattr(spec, "origin", "") == "frozen":
            continue  # what is frozen is found before all folders
        spec = importlib.machinery.PathFinder.find_spec(name, list(folders))
        if spec is not None and spec.has_location and (read := _read(path, name)) is not None:
            found[name] = read[0]
    return found


def own_loaded() -> list[str]:
    """The user's own modules among those that are loaded in this process."""
    unknown = [name for name in list(sys.modules) if name not in _foreign]
    _foreign.update(name for name in unknown if own_file(name) is None)
    return [name for name in unknown if name not in _foreign]


def _locate(name: str) -> str | None:
    module = sys.modules.get(name)
    if isinstance(module, ModuleType):
        path = getattr(module, "__file__", None)
        return path if isinstance(path, str) else None
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for length in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            full = ".".join([top, *rest[: length + 1]])
            # find_spec of a dotted name would import its parents; the path finder only looks.
            spec = importlib.machinery.PathFinder.find_spec(full, list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError, OSError):
        return None  # it cannot be found here, so it cannot have been loaded from here
    return spec.origin if spec is not None and spec.has_location else None


def _is_own(path: str) -> bool:
    return not _in_library(path) and Path(path).is_file()


@lru_cache(4096)
def _in_library(path: str) -> bool:
    full = os.path.realpath(path)
    return is_installed(full) or full.startswith(library_folders())


@cache
def library_folders() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages, each with a closing separator."""
    paths = sysconfig.get_paths()
    folders = [paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


def _read(path: str, name: str) -> tuple[str, tuple[str, ...]] | None:
    """(SHA-256, names that it may import) of a file; remembered until its time or size changes."""
    try:
        facts = Path(path).stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        known = _seen.get(path)
        if known is None or known[0] != stamp:
            source = Path(path).read_bytes()
            package = name if Path(path).stem == "__init__" else name.rpartition(".")[0]
            known = _seen[path] = stamp, hashlib.sha256(source).hexdigest(), _imports(source, package, path)
    except OSError:
        return None  # removed a moment ago: the worker will say so when it imports it
    return known[1], known[2]


def _imports(source: bytes, package: str, path: str) -> tuple[str, ...]:
    if not path.endswith((".py", ".pyw")):
        return ()  # an extension module: its bytes are digested, its imports are its own affair
    try:
        tree = _parsed(source)
    except (SyntaxError, ValueError, RecursionError):
        return ()  # half-edited: the digest still changes, and the worker names the error
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            if base:
                names.add(base)
                names.update(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    return tuple(sorted(names))


def _parsed(source: bytes) -> ast.AST:
    try:
        return ast.parse(source)
    except SystemError:
        # In CPython 3.11 two threads that parse at one time disturb each other; tracebacks are parsed, too (gh-106905).
        return ast.parse(source)


def _absolute(module: str, level: int, package: str) -> str:
    """The full name of `from ..module import`, seen from `package`."""
    if not level:
        return module
    parts = package.split(".") if package else []
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])
