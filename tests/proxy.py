"""A proxy between a client and its server that does what wires do: loses replies, delays, cuts, resets, goes silent.

It forwards TCP connections on `url` to the Unix socket of a server, until told otherwise; each fault may be set while
connections are open.
"""

import contextlib
import socket
import struct
import threading
import time
from urllib.parse import urlsplit


class Proxy:
    """`lost` counts the replies swallowed so far, `connections` the links ever made."""

    def __init__(self, server_url):
        self._path = urlsplit(server_url).path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._word = b""
        self._left = self._least = 0
        self._strike = None  # (word, "before" or "after", action)
        self._tear = None  # (word, bytes)
        self.lost = self.connections = self.resets = 0
        self.latency = 0.0  # seconds that every reply takes longer
        self.drip = False  # one byte at a time, both ways
        self.closed = False  # whether new connections are refused at once
        self._links = []
        threading.Thread(target=self._accept, daemon=True).start()

    # ------------------------------------------------------------ faults

    def lose(self, word, times=1, least=0):
        """From now on: the replies (of at least so many bytes) to `times` requests with `word` in them are lost."""
        self._word, self._left, self._least = word.encode(), times, least

    def strike(self, word, when, action):
        """Once: `action()` before a request with `word` goes on to the server, or after it was answered.

        The link is cut then, so who asked never hears the answer.
        """
        self._strike = (word.encode(), when, action)

    def tear(self, word, after):
        """Once: the link is reset (RST, not FIN) when `after` bytes of a request with `word` have gone by."""
        self._tear = (word.encode(), after)

    def silence(self):
        """The links that are open now go silent: they take what is sent, forward nothing, and never end."""
        for link in self._links:
            link.silent = True

    def cut(self):
        """Ends all links that are open now."""
        for link in list(self._links):
            link.cut()

    @property
    def pending(self):
        """Whether a fault that happens once is still to come."""
        return bool(self._left or self._strike or self._tear)

    # ------------------------------------------------------------ forwarding

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                if self.closed:
                    raise ConnectionRefusedError
                far.connect(self._path)
            except OSError:
                near.close()
                far.close()
                continue
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            link = _Link(near, far)
            self._links.append(link)
            for target in (self._requests, self._replies):
                threading.Thread(target=self._pump, args=(target, link), daemon=True).start()

    def _pump(self, target, link):
        with contextlib.suppress(OSError):
            target(link)
        link.cut()

    def _requests(self, link):
        while data := link.near.recv(1 << 16):
            link.asked[:] = link.asked[-(1 << 16) :] + data
            if self._strikes(link, "before") or self._tears(link, data):
                return
            self._send(link, link.far, data)

    def _replies(self, link):
        while data := link.far.recv(1 << 16):
            if self._strikes(link, "after"):
                return
            if self._left and self._word in link.asked and len(data) >= self._least:
                self._left -= 1
                self.lost += 1
                return
            link.asked.clear()
            if self.latency:
                time.sleep(self.latency)
            self._send(link, link.near, data)

    def _strikes(self, link, when):
        struck = self._strike
        if struck is None or struck[1] != when or struck[0] not in link.asked:
            return False
        self._strike = None
        struck[2]()
        return True

    def _tears(self, link, data):
        if self._tear is None:
            return False
        word, after = self._tear
        link.torn = link.torn or word in link.asked
        if not link.torn:
            return False
        link.since += len(data)
        if link.since < after:
            return False
        self._tear = None
        self.resets += 1
        self._send(link, link.far, data[: len(data) - (link.since - after)])
        link.reset()
        return True

    def _send(self, link, to, data):
        if link.silent:
            return
        if not self.drip:
            to.sendall(data)
            return
        for place in range(len(data)):
            to.sendall(data[place : place + 1])

    def close(self):
        self._listener.close()
        self.cut()


class _Link:
    """One connection through the proxy."""

    def __init__(self, near, far):
        self.near, self.far = near, far
        self.asked = bytearray()  # what was asked since the last reply, or the end of it
        self.since = 0  # bytes since the request to be torn began
        self.silent = self.torn = False

    def cut(self):
        for each in (self.near, self.far):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def reset(self):
        """Closes the near side so that the peer gets RST; the far one ends in the middle of a request."""
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.near.close()
