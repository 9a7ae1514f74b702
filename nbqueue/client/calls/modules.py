"""The user's modules that a function imports, and the digests of their sources.

An edited `mylib.py` must never run as old code, so the digest of every such file is part of the forkserver's key. A
module is the user's if it is neither in the standard library nor in site-packages. Sources are parsed, not executed,
so that modules that are imported late, inside a function, count as well.
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

MOST = 2_000  # files; with more, sys.path contains a whole installation

_seen: dict[str, tuple[tuple[int, int], str, tuple[str, ...]]] = {}
_foreign: set[str] = set()
_compared: dict[str, tuple[int, str]] = {}  # module -> (its import here, digest of the file at the last comparison)


def digests(names: Iterable[str]) -> dict[str, str]:
    """Module name -> SHA-256 (hex) of its file, for the user's modules among `names` and all that they import."""
    found: dict[str, str] = {}
    waiting, visited = list(names), set[str]()
    while waiting and len(found) < MOST:
        name = waiting.pop()
        if name in visited:
            continue
        visited.add(name)
        path = user_file(name)
        if path is None:
            continue
        read = _read(path, name)
        if read is not None:
            found[name], imports = read
            waiting += imports
            waiting += line(name)[:-1]
    return dict(sorted(found.items()))


def stale_modules(found: dict[str, str]) -> list[str]:
    """Those of `found` (from `digests`) whose file has changed since this process imported it; each is returned once.

    Workers run the new file and this process the old one, so their results may differ.
    """
    names = []
    for name, digest in found.items():
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        # Other loaders (of a test runner, say) change the code on purpose.
        if module is None or spec is None or type(spec.loader) is not importlib.machinery.SourceFileLoader:
            continue
        if _compared.get(name) != (id(spec), digest):
            _compared[name] = id(spec), digest
            if _differs(module, str(spec.origin)):
                names.append(name)
    return names


def _differs(module: ModuleType, path: str) -> bool:
    """Whether a plain function of the module differs from its definition in the file."""
    try:
        code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return True
    defined: dict[str, list[CodeType]] = {}  # a name may be defined several times: under conditions, or overloaded
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            defined.setdefault(inner.co_name, []).append(inner)
    for name, parts in defined.items():
        own = vars(module).get(name)
        if not isinstance(own, FunctionType) or own.__code__.co_qualname != name or own.__code__.co_filename != path:
            continue  # not a plain function: decorated, say
        if _bare(own.__code__) not in map(_bare, parts):
            return True
    return False


def _bare(code: CodeType) -> CodeType:
    """The code without line numbers, which a comment changes."""
    parts = tuple(_bare(inner) if isinstance(inner, CodeType) else inner for inner in code.co_consts)
    return code.replace(co_consts=parts, co_firstlineno=1, co_linetable=b"")


def line(name: str) -> list[str]:
    """The module and its parent packages, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def user_file(name: str) -> str | None:
    """The file of module `name` if it is the user's; None for all others, and if it is not found."""
    if name.partition(".")[0] in {"nbqueue", "__main__", "__mp_main__", ""}:
        return None
    path = _locate(name)
    return path if path is not None and _is_users(path) else None


def shadowed(names: Iterable[str], folders: Sequence[str]) -> dict[str, str]:
    """Module name -> SHA-256 (hex) of its file, for files in `folders` that shadow a module of the standard library.

    This process imported the library's module; a job would import the file.
    """
    found = {}
    for name in {name.partition(".")[0] for name in names} & sys.stdlib_module_names:
        path, spec = getattr(sys.modules.get(name), "__file__", None), getattr(sys.modules.get(name), "__spec__", None)
        if path is None or not _in_library(path) or getattr(spec, "origin", "") == "frozen":
            continue  # frozen modules cannot be shadowed
        spec = importlib.machinery.PathFinder.find_spec(name, list(folders))
        if spec is not None and spec.has_location and (read := _read(path, name)) is not None:
            found[name] = read[0]
    return found


def user_loaded() -> list[str]:
    """The user's modules that are loaded in this process."""
    unknown = [name for name in list(sys.modules) if name not in _foreign]
    _foreign.update(name for name in unknown if user_file(name) is None)
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
            # find_spec of a dotted name would import its parents; the path finder does not.
            spec = importlib.machinery.PathFinder.find_spec(full, list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError, OSError):
        return None  # not found, so not loaded from here either
    return spec.origin if spec is not None and spec.has_location else None


def _is_users(path: str) -> bool:
    return not _in_library(path) and Path(path).is_file()


@lru_cache(4096)
def _in_library(path: str) -> bool:
    full = os.path.realpath(path)
    return is_installed(full) or full.startswith(library_folders())


@cache
def library_folders() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages, each with a closing separator."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.realpath(folder) + os.sep for folder in folders})


def _read(path: str, name: str) -> tuple[str, tuple[str, ...]] | None:
    """(SHA-256, names that it may import) of a file; cached until its time or size changes."""
    try:
        facts = Path(path).stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        known = _seen.get(path)
        if known is None or known[0] != stamp:
            source = Path(path).read_bytes()
            package = name if Path(path).stem == "__init__" else name.rpartition(".")[0]
            known = _seen[path] = stamp, hashlib.sha256(source).hexdigest(), _imports(source, package, path)
    except OSError:
        return None  # just removed: the import fails on the worker
    return known[1], known[2]


def _imports(source: bytes, package: str, path: str) -> tuple[str, ...]:
    if not path.endswith((".py", ".pyw")):
        return ()  # an extension module: only its bytes count
    try:
        tree = _parsed(source)
    except (SyntaxError, ValueError, RecursionError):
        return ()  # half-edited: the digest still changes, and the worker reports the error
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
        # In CPython 3.11 parsing in two threads at once can fail; tracebacks are parsed, too (gh-106905).
        return ast.parse(source)


def _absolute(module: str, level: int, package: str) -> str:
    """The full name of `from ..module import`, seen from `package`."""
    if not level:
        return module
    parts = package.split(".") if package else []
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])
