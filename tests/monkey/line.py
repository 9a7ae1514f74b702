"""A line to the server that can be cut, lose replies, be slow, or fall silent; it outlives the server."""

import threading
import time

from proxy import Proxy


class Line(Proxy):
    """A proxy that is as it was when the fault is over."""

    def __init__(self, path):
        self.delay = 0.0  # seconds that everything takes longer, both ways
        self._open = threading.Event()
        self._open.set()
        super().__init__(f"unix://{path}")

    def silence(self):
        """From now on nothing passes, and nobody is told."""
        self._open.clear()

    def calm(self):
        """As a good line."""
        self.delay, self._left = 0.0, 0
        self._open.set()

    def _send(self, link, to, data):
        self._open.wait()
        if self.delay:
            time.sleep(self.delay)
        super()._send(link, to, data)

    def close(self):
        self.calm()
        super().close()
