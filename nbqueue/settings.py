"""Settings, in this order of precedence: arguments, environment, connection file, config file, defaults."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nbqueue.checks import OFF, size, spill_root
from nbqueue.errors import BadOption

NAMESPACE = "nbq"
SPOOL_CAP = 10 << 30  # bytes
MAX_OPEN = 1_000_000  # unfinished batches in a queue
_FILED: dict[str, type] = {
    "url": str,
    "namespace": str,
    "slots": int,
    "spool": str,
    "spool_cap": str,
    "spill": str,
    "max_open": int,
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings in force. `url` None means local mode: a private server on this machine."""

    home: Path
    url: str | None = None
    namespace: str = NAMESPACE
    slots: int | None = None
    progress: bool = True
    inline: bool | str = False
    spool: Path | None = None  # folder for copies of collected results; None: off
    spool_cap: int = SPOOL_CAP
    spill: str | None = None  # folder or URL for large results; None: they stay on the server
    max_open: int = MAX_OPEN

    @property
    def local(self) -> Path:
        """The folder of this host's private server; hosts that share a home have one folder each."""
        return self.home / "local" / host()


def host() -> str:
    """This machine's name; Slurm's node name if there is one, because nodes may share a hostname."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def python_version() -> str:
    """This Python's minor version, within which bytecode is compatible: `3.11`."""
    return ".".join(platform.python_version_tuple()[:2])


def home_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`NBQUEUE_HOME`, or `~/.nbqueue`.

    Without a home folder: a temporary one if NBQUEUE_SECRET is set; else raises BadOption.
    """
    if folder := environ.get("NBQUEUE_HOME"):
        return Path(folder).expanduser()
    try:
        return Path.home() / ".nbqueue"
    except RuntimeError as why:
        # A container's user without HOME and without an entry in the passwd file.
        if not environ.get("NBQUEUE_SECRET"):
            raise BadOption(
                message=f"This process has no home folder ({why}), and nbqueue keeps its secret there. Set "
                "NBQUEUE_SECRET to the secret that clients and workers share, or NBQUEUE_HOME to a folder, or HOME."
            ) from why
        import tempfile  # imports `random`, which a worker's children must not inherit

        return Path(tempfile.gettempdir()) / f"nbqueue-{os.getuid()}"


def load(
    url: str | None = None,
    namespace: str | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Reads the settings. Raises BadOption for an invalid file or variable."""
    home = home_folder(environ)
    _guard(home)
    filed = _toml(config) if config else _toml(home / "config.toml", missing_ok=True)
    filed |= _toml(home / "connection.toml", missing_ok=True)
    pick = {
        "url": url or environ.get("NBQUEUE_URL") or filed.get("url"),
        "namespace": environ.get("NBQUEUE_NAMESPACE") or filed.get("namespace") or NAMESPACE,
    }
    if namespace is not None:
        pick["namespace"] = namespace  # also an empty one, which is rejected later
    return Settings(
        home=home,
        url=pick["url"],
        namespace=str(pick["namespace"]),
        slots=_count("NBQUEUE_SLOTS", environ.get("NBQUEUE_SLOTS") or filed.get("slots")),
        progress=environ.get("NBQUEUE_PROGRESS", "1") != "0",
        inline=_inline(environ.get("NBQUEUE_INLINE", "")),
        spool=_spool(environ.get("NBQUEUE_SPOOL") or filed.get("spool"), home),
        spool_cap=size("spool_cap", filed.get("spool_cap")) or SPOOL_CAP,
        spill=_spill(environ.get("NBQUEUE_SPILL") or filed.get("spill")),
        max_open=_count("NBQUEUE_MAX_OPEN", environ.get("NBQUEUE_MAX_OPEN") or filed.get("max_open")) or MAX_OPEN,
    )


def _guard(home: Path) -> None:
    """Raises BadOption if other users could write a secret or a server address into the home."""
    try:
        facts = home.stat()
    except OSError:
        return  # created on demand, for its owner only
    if facts.st_uid != os.getuid():
        remedy = "Set NBQUEUE_HOME to a folder of your own."
        raise BadOption(message=f"The folder {home} belongs to user {facts.st_uid}, not to you. {remedy}")
    if facts.st_mode & 0o002:
        raise BadOption(message=f"Everyone may write to the folder {home}. Run `chmod go-w {home}`.")


def filed_url(home: Path) -> str | None:
    """The URL in the connection file."""
    found: str | None = _toml(home / "connection.toml", missing_ok=True).get("url")
    return found


def _toml(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    import tomllib

    try:
        return _checked(tomllib.loads(path.read_text()), path)
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise BadOption(message=f"There is no config file {path}.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
        raise BadOption(message=f"The file {path} cannot be read: {why}. Fix or remove it.") from why


def _spool(word: str | None, home: Path) -> Path | None:
    if word in {"0", "off"}:
        return None
    return Path(word).expanduser().absolute() if word else home / "spool"


def _spill(word: str | None) -> str | None:
    root = spill_root("NBQUEUE_SPILL", word)
    return None if root == OFF else root


def _inline(word: str) -> bool | str:
    if word not in {"", "0", "1", "collect"}:
        raise BadOption(message=f"NBQUEUE_INLINE={word!r} must be 1, 0 or collect.")
    return word if word == "collect" else word == "1"


def command_tables(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> dict[str, dict[str, Any]]:
    """The tables of the config file by command, with option names as in Python."""
    filed = _toml(config or home_folder(environ) / "config.toml", missing_ok=config is None)
    tables = {name: table for name, table in filed.items() if isinstance(table, dict)}
    return {name: {key.replace("-", "_"): value for key, value in table.items()} for name, table in tables.items()}


def _checked(filed: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a file; raises BadOption for unknown settings and wrong types."""
    for name, value in filed.items():
        if isinstance(value, dict):
            continue  # a command's table: the command checks its options
        if name not in _FILED:
            raise BadOption(
                message=f"The file {path} has {name!r}, which is not a setting. Settings: {', '.join(_FILED)}."
            )
        if not isinstance(value, _FILED[name]):
            raise BadOption(
                message=f"The file {path} has {name} = {value!r}, which must be of type {_FILED[name].__name__}."
            )
    return filed


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if not str(value).isdigit() or int(str(value)) < 1:
        raise BadOption(message=f"{name}={value!r} must be a whole number of 1 or more.")
    return int(str(value))


def cpus() -> int:
    """The CPUs that this process may use: its affinity, not the machine's count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def born(pid: int) -> str:
    """The start time of a process, as the system states it; empty if the process has ended, or is a zombie.

    Pid and start time together identify a process: a pid alone may be reused.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self").exists():
            return ""
        import subprocess  # imports `locale`, which a worker's children must not inherit

        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return shown.stdout.strip()
    return "" if fields[0] in "ZX" else fields[19]
