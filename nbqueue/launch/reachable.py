"""Making this machine's private server reachable from other machines, with the same data."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit

from nbqueue.launch import local
from nbqueue.settings import Settings, host
from nbqueue.store import server
from nbqueue.wire import Keyring


def start(found: Settings, *, port: int, bind: str) -> str:
    """Restarts the private server on a TCP port with a password, and writes the connection file; returns the URL.

    Port 0 is a free one. A server that is reachable already stays as it is, unless another port is asked for.
    """
    running = server.status(found.local)
    if running is not None and running.public and found.url and port in {0, _port(found.url)}:
        return found.url
    Keyring.load(found.home)  # made now, so that it can be copied to where it is needed
    local.dismiss(found.local)
    server.stop(found.local)
    password = secrets.token_hex(24)
    port = port or _free_port(bind)
    server.start(found.local, port=port, bind=bind, password=password)
    url = f"redis://:{password}@{_address(bind)}:{port}"
    _write(found.home / "connection.toml", f'url = "{url}"\n')
    return url


def _free_port(bind: str) -> int:
    with socket.socket() as probe:
        probe.bind((bind, 0))
        port: int = probe.getsockname()[1]
    return port


def _address(bind: str) -> str:
    return host() if bind in {"0.0.0.0", "::", "*"} else bind  # noqa: S104 - compared, not bound


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def stop(found: Settings) -> bool:
    """Stops the private server and removes the connection file that names it; False if none ran."""
    running = server.status(found.local)
    path = found.home / "connection.toml"
    named = running is not None and running.public and found.url and _port(running.public) == _port(found.url)
    if named and path.exists():
        path.unlink()
    local.dismiss(found.local)
    return server.stop(found.local)


def _port(url: str) -> int | None:
    return urlsplit(url).port
