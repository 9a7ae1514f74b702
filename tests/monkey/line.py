"""A line to the server that can be cut, lose replies, be slow, or fall silent; it outlives the server."""

import contextlib
import socket
import threading
import time


class Line:
    """Forwards TCP connections on `url` to a Unix socket."""

    def __init__(self, path):
        self._path = str(path)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay = 0.0
        self.lost = 0  # replies swallowed so far
        self._word, self._left = b"", 0
        self._open = threading.Event()
        self._open.set()
        self._pairs = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, word, times):
        """The replies to the next requests with this word in them are lost, and the link with them."""
        self._word, self._left = word.encode(), times

    def silence(self):
        """From now on nothing passes, and nobody is told."""
        self._open.clear()

    def cut(self):
        """Ends all links."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def calm(self):
        """As a good line."""
        self.delay, self._left = 0.0, 0
        self._open.set()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._begin, args=(near,), daemon=True).start()

    def _begin(self, near):
        far = socket.socket(socket.AF_UNIX)
        pair = (near, far)
        try:
            far.connect(self._path)
        except OSError:  # the server is away
            self._end(pair)
            return
        with self._lock:
            self._pairs.add(pair)
        asked = bytearray()
        threading.Thread(target=self._requests, args=(pair, asked), daemon=True).start()
        self._replies(pair, asked)

    def _requests(self, pair, asked):
        near, far = pair
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                self._pass()
                asked[:] = asked[-200:] + data
                far.sendall(data)
        self._end(pair)

    def _replies(self, pair, asked):
        near, far = pair
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                if self._left and self._word in asked:
                    self._left -= 1
                    self.lost += 1
                    break
                self._pass()
                near.sendall(data)
        self._end(pair)

    def _pass(self):
        self._open.wait()
        if self.delay:
            time.sleep(self.delay)

    def _end(self, pair):
        with self._lock:
            self._pairs.discard(pair)
        for each in pair:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self):
        self._listener.close()
        self.calm()
        self.cut()
