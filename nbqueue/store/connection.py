"""The connection to a server: made from a URL or adopted, checked once, its errors put into our words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis import exceptions as wrong
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from nbqueue.errors import BadOption, NbqueueError, NoServer, ServerRefused, ServerUnfit, WrongPassword

OLDEST = (6, 2)
_TIMEOUT = 5.0
_SCHEMES = ("redis", "rediss", "unix")

_REFUSALS = {
    "OOM": (
        "its memory is full",
        "Raise `maxmemory` (`redis-cli config set maxmemory 4gb`), or forget batches. Running jobs go on.",
    ),
    "MISCONF": (
        "it cannot write its data to disk",
        "Free space on the server's disk, or see its log; it takes writes again once it has saved.",
    ),
    "READONLY": ("it is a read-only replica", "Use the URL of the primary server."),
    "BUSY": ("a script keeps it busy", "Wait; if it lasts, run `redis-cli script kill`."),
    "MASTERDOWN": ("it is a replica that has lost its primary", "Use the URL of the primary server."),
    "NOREPLICAS": (
        "too few replicas follow it",
        "Start them, or run `redis-cli config set min-replicas-to-write 0` on it.",
    ),
    "NOPERM": ("this user lacks a permission", "Ask its administrator for the rights that nbqueue's manual lists."),
    "WRONGTYPE": (
        "a key of ours holds something else",
        "Another program uses the same keys: choose another namespace with NBQUEUE_NAMESPACE.",
    ),
}


class Connection:
    """A redis-py client, with the URL (without its password) that messages name."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client = client
        self.url = url

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns errors of redis-py into ours."""
        try:
            yield
        except wrong.RedisError as why:
            raise translate(why, self.url) from why

    def close(self) -> None:
        """Closes all its sockets."""
        self.client.close()
        self.client.connection_pool.disconnect()


def connect(url: str, *, timeout: float = _TIMEOUT) -> Connection:
    """A connection to `redis://`, `rediss://` or `unix://`; nothing is sent yet. Raises BadOption."""
    if urlsplit(url).scheme not in _SCHEMES:
        raise BadOption(message=f"url={shown(url)!r} must begin with redis://, rediss:// or unix://.")
    try:
        client = redis.Redis.from_url(url, **_options(timeout))
    except ValueError as why:
        raise BadOption(message=f"url={shown(url)!r} cannot be understood: {why}.") from why
    return Connection(client, shown(url))


def adopt(client: redis.Redis) -> Connection:
    """A connection of our own to the server of a client that the user made, with its address and credentials."""
    pool = client.connection_pool
    kwargs = {**pool.connection_kwargs, **_options(pool.connection_kwargs.get("socket_timeout") or _TIMEOUT)}
    kwargs = {name: value for name, value in kwargs.items() if "maint_notifications" not in name}
    ours = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **kwargs))
    if "path" in kwargs:
        return Connection(ours, f"unix://{kwargs['path']}")
    return Connection(
        ours, f"redis://{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}/{kwargs.get('db', 0)}"
    )


def _options(timeout: float) -> dict[str, Any]:
    # Commands may be sent again when a reply is lost: every verb is idempotent.
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        "retry_on_error": [wrong.ConnectionError, wrong.TimeoutError],
        "decode_responses": False,
        "protocol": 2,
        "health_check_interval": 0,
    }


def shown(url: str) -> str:
    """The URL without its password."""
    url = re.sub(r"([?&]password=)[^&]*", r"\1***", url)
    url = re.sub(r"([?&]password=)[^&]*", r"\1***", url)
    parts = urlsplit(url)
    if not parts.password:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


# ---------------------------------------------------------------- errors


def translate(why: wrong.RedisError, url: str) -> NbqueueError:
    """Our word for an error of redis-py."""
    # A pipeline says in front which of its commands it was.
    text = re.sub(r"^Command # \d+ \(.*?\) of pipeline caused error: ", "", str(why), flags=re.DOTALL)
    if isinstance(why, wrong.AuthenticationError | wrong.AuthorizationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return WrongPassword(url=url, why=text)
    if isinstance(why, wrong.BusyLoadingError):
        return _loading(url)
    if isinstance(why, wrong.InvalidResponse):
        return NoServer(url=url, why=f"what answers there is not Redis ({text})", remedy="Check host and port.")
    word = _word(why, text)
    if word in _REFUSALS:
        reason, remedy = _REFUSALS[word]
        return ServerRefused(why=f"{reason} ({text})", remedy=remedy, kind=word)
    if isinstance(why, wrong.ConnectionError | wrong.TimeoutError):
        remedy = "Start one with `nbqueue server start`, or give the URL of a running one with NBQUEUE_URL."
        return NoServer(url=url, why=text or type(why).__name__, remedy=remedy)
    return ServerRefused(why=text, remedy="This is not expected: please report it with this message.")


def _loading(url: str) -> NoServer:
    why, remedy = "it is still loading its data", "Wait until it has: its log says how far it is."
    return NoServer(url=url, why=why, remedy=remedy, kind="LOADING")


_KINDS = ((wrong.OutOfMemoryError, "OOM"), (wrong.ReadOnlyError, "READONLY"), (wrong.NoPermissionError, "NOPERM"))


def _word(why: wrong.RedisError, text: str) -> str:
    # redis-py strips the word of errors that it has a class for; a script's error carries it in front or within.
    for kind, word in _KINDS:
        if isinstance(why, kind):
            return word
    found = re.match(r"(?:ERR )?(?:Error running script[^:]*: )?(?:@?user_script: ?\d*:? *)*-?([A-Z]+)\b", text)
    if found and found[1] in _REFUSALS:
        return found[1]
    return "OOM" if "command not allowed when used memory" in text else ""


def is_wrong_type(answer: object) -> bool:
    """Whether an answer is an error that says that a key holds something else."""
    return isinstance(answer, wrong.ResponseError) and str(answer).startswith("WRONGTYPE")


def is_damage(answer: object) -> bool:
    """Whether an answer is the error of a script that met keys which are not as we wrote them."""
    if not isinstance(answer, wrong.ResponseError):
        return False
    text = str(answer)
    word = _word(answer, text)
    return word == "WRONGTYPE" or (not word and "user_script" in text)


# ---------------------------------------------------------------- the check at connect


def preflight(connection: Connection) -> list[str]:
    """Checks once that the server can be relied on; answers what is worth a warning.

    Raises NoServer, WrongPassword or ServerUnfit.
    """
    with connection.errors():
        info = connection.client.info()
    if info.get("loading"):  # it answers this much, and does not yet say what it will be
        raise _loading(connection.url)
    refuse(info, connection.url)
    notes = []
    if not info.get("aof_enabled"):
        told = f"The server at {connection.url} keeps no append-only file: what it holds may be lost when it stops."
        notes.append(f"{told} `redis-cli config set appendonly yes` on it mends that.")
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        told = f"The server at {connection.url} could not write its data to disk the last time that it tried."
        notes.append(f"{told} Free space on its disk, or see its log.")
    return notes


def refuse(info: dict[str, Any], url: str) -> None:
    """Raises ServerUnfit for a server (its INFO) that would lose or refuse jobs."""
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        remedy = "Use Redis 6.2 or newer, or Valkey."
        raise ServerUnfit(url=url, why=f"its version {version} is too old", remedy=remedy)
    if info.get("role", "master") != "master":
        primary = f"redis://{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        raise ServerUnfit(url=url, why="it is a replica, which takes no writes", remedy=f"Use its primary, {primary}.")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and int(info.get("maxmemory", 0)) > 0:
        why = f"it throws data away when its memory is full (maxmemory-policy {policy})"
        raise ServerUnfit(url=url, why=why, remedy="Run `redis-cli config set maxmemory-policy noeviction`.")
