"""The pages of the demo: texts of the installed Python packages, served over HTTP on loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from urllib.parse import quote, unquote

ENOUGH = 100
PAGE = 3_000  # characters


def documents() -> dict[str, str]:
    """Name -> text of the METADATA and licenses of all installed packages; long ones are split until there are 100."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        name = package.metadata["Name"] or "unnamed"
        for file in package.files or ():
            if file.name == "METADATA" or "LICEN" in file.name.upper() or file.name.upper().startswith("COPYING"):
                with contextlib.suppress(OSError, UnicodeDecodeError):  # listed, but missing or not a text
                    found[f"{name}/{file.name}"] = file.read_text()
    for name in sorted(found, key=lambda each: -len(found[each])):
        if len(found) >= ENOUGH:
            break
        text = found.pop(name)
        found |= {f"{name}/page-{at // PAGE + 1}": text[at : at + PAGE] for at in range(0, max(len(text), 1), PAGE)}
    return dict(sorted(found.items()))


@contextlib.contextmanager
def served(texts: dict[str, str]) -> Iterator[list[str]]:
    """Serves the texts on a free port of 127.0.0.1; yields their URLs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            text = texts.get(unquote(self.path).lstrip("/"))
            body = (text or "There is no such page.\n").encode()
            self.send_response(404 if text is None else 200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
            """Logs nothing: the terminal shows the progress bar."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="nbqueue-demo-pages", daemon=True)
        thread.start()
        try:
            yield [f"http://127.0.0.1:{server.server_port}/{quote(name)}" for name in texts]
        finally:
            server.shutdown()
            thread.join()
