"""A proxy between a client and its server that can lose a reply: the request arrives, the answer never does."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Forwards TCP connections on `url` to the Unix socket of a server, until `lose` says which reply to swallow."""

    def __init__(self, server_url):
        self._path = urlsplit(server_url).path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._word = b""
        self._left = 0
        self.lost = 0  # replies swallowed so far
        self._pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, word, times=1, least=0):
        """From now on: the replies (of at least so many bytes) to `times` requests with `word` in them are lost."""
        self._word, self._left, self._least = word.encode(), times, least

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._path)
            self._pairs.append((near, far))
            asked = bytearray()
            for target in (self._requests, self._replies):
                threading.Thread(target=target, args=(near, far, asked), daemon=True).start()

    def _requests(self, near, far, asked):
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                asked[:] = asked[-200:] + data
                far.sendall(data)
        _cut(near, far)

    def _replies(self, near, far, asked):
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                if self._left and self._word in asked and len(data) >= self._least:
                    self._left -= 1
                    self.lost += 1
                    break
                near.sendall(data)
        _cut(near, far)

    def close(self):
        self._listener.close()
        for near, far in self._pairs:
            _cut(near, far)


def _cut(*sockets):
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
