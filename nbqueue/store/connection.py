"""The connection to a server: made from a URL or adopted, checked once, its errors put into our words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
from redis import exceptions as wrong
from redis.backoff import ExponentialBackoff
from redis.connection import parse_url
from redis.retry import Retry

from nbqueue import errors
from nbqueue.errors import BadInput, BadOption, NbqueueError, ServerUnfit
from nbqueue.store.scripts import is_stand_in

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
    "DB": ("it has no such database", "Use one with a lower number in the URL, as redis://host:6379/0."),
    "NOPERM": ("this user lacks a permission", "Ask its administrator for the rights that nbqueue's manual lists."),
    "WRONGTYPE": (
        "a key of nbqueue holds other data",
        "Another program uses the same keys: choose another namespace with NBQUEUE_NAMESPACE.",
    ),
}


class NoServer(errors.NoServer, wrong.ConnectionError):
    """As those who wrap an enqueue in `except redis.ConnectionError` expect it."""

    __doc__ = errors.NoServer.__doc__
    __repr__ = errors.NoServer.__repr__  # redis-py's tells the kind alone


class ServerRefused(errors.ServerRefused, wrong.ResponseError):
    """The same, for `except redis.RedisError`."""

    __doc__ = errors.ServerRefused.__doc__
    __repr__ = errors.ServerRefused.__repr__


class WrongPassword(errors.WrongPassword, wrong.AuthenticationError):
    """The same."""

    __doc__ = errors.WrongPassword.__doc__
    __repr__ = errors.WrongPassword.__repr__


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
        except NbqueueError:
            raise  # it has been translated
        except wrong.RedisError as why:
            raise translate(why, self.url) from why

    def close(self) -> None:
        """Closes all its sockets."""
        self.client.close()
        self.client.connection_pool.disconnect()


def connect(url: str, *, timeout: float = _TIMEOUT) -> Connection:
    """A connection to `redis://`, `rediss://` or `unix://`; nothing is sent yet. Raises BadOption."""
    try:
        scheme = urlsplit(url).scheme
        if scheme not in _SCHEMES:
            raise BadOption(message=f"url={shown(url)!r} must begin with redis://, rediss:// or unix://.")
        facts = _checked(url, parse_url(url))  # type: ignore[no-untyped-call]
        kind = facts.pop("connection_class", redis.Connection)
        pool = redis.ConnectionPool(connection_class=kind, **_options(timeout) | facts | _OURS)
        pool.make_connection()  # it is given its options here, and connects later
    except (ValueError, TypeError, wrong.RedisError) as why:
        if isinstance(why, BadOption):
            raise
        raise BadOption(message=f"url={shown(url)!r} cannot be used: {why}.") from why
    return Connection(redis.Redis(connection_pool=pool), shown(url))


def _checked(url: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What a URL says, if it is all known. Raises ValueError for the rest."""
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", unquote(parts.path)):
        raise ValueError(f"its database {unquote(parts.path)[1:]!r} is not a number")
    kind = facts.get("connection_class", redis.Connection)
    known = {name for each in kind.__mro__ if "__init__" in vars(each) for name in signature(each.__init__).parameters}
    known = (known | {"max_connections"}) - {"self", "args", "kwargs"}
    if strange := sorted(facts.keys() - known - {"connection_class"}):
        near = get_close_matches(strange[0], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see redis-py's documentation of Redis.from_url"
        raise ValueError(f"it has an unknown option {strange[0]!r}; {hint}")
    if parts.scheme == "unix" and not facts.get("path"):
        raise ValueError("it names no socket; write unix:///path/to/redis.sock")
    if facts.get("db", 0) < 0:
        raise ValueError(f"its database {facts['db']} is below 0")
    if not re.fullmatch(r"[!-~]*", facts.get("client_name", "")):
        raise ValueError(f"its client_name {facts['client_name']!r} has a space, or another character than ASCII")
    return facts


def check_client(client: object, whose: str) -> None:
    """Raises BadInput for what is no client of redis-py's that can be used here."""
    if isinstance(client, redis.Redis):
        return
    name, module = type(client).__name__, type(client).__module__
    told = f"{whose} takes a URL or a redis.Redis, not "
    if module.startswith("redis.asyncio"):
        told += f"redis.asyncio's {name}. Make a redis.Redis with the same address"
    elif hasattr(client, "connection_pool"):
        told += f"{module.partition('.')[0]}'s {name}. Give its URL: a Valkey server answers to redis:// too"
    else:
        told += name
    raise BadInput(message=f"{told}.")


def adopt(client: redis.Redis) -> Connection:
    """A connection of our own to the server of a client that the user made, with its address and credentials."""
    pool = client.connection_pool
    kwargs = {**pool.connection_kwargs, **_options(pool.connection_kwargs.get("socket_timeout") or _TIMEOUT), **_OURS}
    kwargs = {name: value for name, value in kwargs.items() if "maint_notifications" not in name}
    ours = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **kwargs))
    return Connection(ours, _address(pool, kwargs))


def _address(pool: Any, kwargs: dict[str, Any]) -> str:
    """Where a client's server is, as a URL; of a client of Sentinel's, which of its services."""
    if (service := getattr(pool, "service_name", None)) is not None:
        ways = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        told = ",".join(f"{way.get('host', '?')}:{way.get('port', '?')}" for way in ways)
        return f"redis+sentinel://{told}/{service}"
    if "path" in kwargs:
        return f"unix://{kwargs['path']}"
    return f"redis://{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}/{kwargs.get('db', 0)}"


def _options(timeout: float) -> dict[str, Any]:
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout}


# What a connection must be like for us, whatever a URL or a client says.
# Commands may be sent again when a reply is lost: every verb is idempotent.
_OURS: dict[str, Any] = {
    "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    "retry_on_error": [wrong.ConnectionError, wrong.TimeoutError],
    "decode_responses": False,
    "encoding": "utf-8",
    "protocol": 2,
    "health_check_interval": 0,
}


def shown(url: str) -> str:
    """The URL without its password."""
    url = re.sub(r"([?&]password=)[^&]*", r"\1***", url)
    url = re.sub(r"([?&]password=)[^&]*", r"\1***", url)
    try:
        parts = urlsplit(url)
    except ValueError:  # it is no URL: what may be a password is left out
        return re.sub(r"//[^@]*@", "//***@", url)
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
        return NoServer(url=url, why=f"the program there is not Redis ({text})", remedy="Check host and port.")
    word = _word(why, text)
    if word in _REFUSALS:
        reason, remedy = _REFUSALS[word]
        return ServerRefused(why=f"{reason} ({text})", remedy=remedy, kind=word)
    if isinstance(why, wrong.ConnectionError | wrong.TimeoutError):
        remedy = "Start one with `nbqueue server start`, or give the URL of a running one with NBQUEUE_URL."
        return NoServer(url=url, why=text or type(why).__name__, remedy=remedy)
    return ServerRefused(why=text, remedy="This is unexpected: please report it with this message.")


def _loading(url: str) -> NoServer:
    why, remedy = "it is still loading its data", "Wait until it has finished; its log shows the progress."
    return NoServer(url=url, why=why, remedy=remedy, kind="LOADING")


_KINDS = (
    (wrong.OutOfMemoryError, "OOM"),
    (wrong.ReadOnlyError, "READONLY"),
    (wrong.NoPermissionError, "NOPERM"),
    (wrong.MasterDownError, "MASTERDOWN"),
)


def _word(why: wrong.RedisError, text: str) -> str:
    # redis-py strips the word of errors that it has a class for; a script's error carries it in front or within.
    for kind, word in _KINDS:
        if isinstance(why, kind):
            return word
    found = re.match(r"(?:ERR )?(?:Error running script[^:]*: )?(?:@?user_script: ?\d*:? *)*-?([A-Z]+)\b", text)
    if found and found[1] in _REFUSALS:
        return found[1]
    if "DB index is out of range" in text:
        return "DB"
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
    if is_stand_in(connection.client):
        return []  # it tells nothing of itself
    with connection.errors():
        info = connection.client.info()
    if info.get("loading"):  # it answers this much, and does not yet say what it will be
        raise _loading(connection.url)
    refuse(info, connection.url)
    notes = []
    if not info.get("aof_enabled"):
        told = f"The server at {connection.url} keeps no append-only file: its data may be lost when it stops."
        notes.append(f"{told} `redis-cli config set appendonly yes` on it fixes that.")
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
        why = f"it evicts data when its memory is full (maxmemory-policy {policy})"
        raise ServerUnfit(url=url, why=why, remedy="Run `redis-cli config set maxmemory-policy noeviction`.")
