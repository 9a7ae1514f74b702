"""The processes of a run: a server, workers in their places, clients, and the lines between them."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import redis
from fleet import Fleet, Worker
from helpers import wait_until
from redis.backoff import NoBackoff
from redis.retry import Retry

from nbqueue.settings import born
from nbqueue.store import server as program
from tests.monkey.line import Line
from tests.monkey.plan import CLIENTS, PLACES

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("--slots", "2", "--lease", "2.0", "--beat", "0.4")
POWER = 1.0  # seconds that may be lost with the power, where the file is synced every second


def send(pid, number):
    """A signal, if there is still somebody to take it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def rss(pids):
    """MB of memory that these processes hold."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6


def worker(fleet, *words):
    """A worker of which we note what it was sent, and how large it grew."""
    made = Worker(fleet, [*words, *WORDS], {})
    made.words, made.born, made.sizes = words, time.monotonic(), []
    made.doom = set()  # signals that it was sent
    return made


class Server:
    """A server program of our own; in mode `everysec` a kill takes the last second of its file along."""

    def __init__(self, folder, mode):
        self.folder, self.mode = folder, mode
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.sizes = deque()
        self.losses = 0  # bytes
        self.start()

    def start(self):
        words = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        words += ["--appendonly", "yes", "--appendfsync", self.mode, "--aof-load-truncated", "yes"]
        log = (self.folder / "server.log").open("a")
        found = program.find_program(os.environ.get("NBQUEUE_TEST_SERVER"))
        self.process = subprocess.Popen([str(found), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self.process.pid
        self.client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        wait_until(self._answers, 30)

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            return self.client.ping()
        except redis.RedisError:
            return False

    @property
    def awake(self):
        """Whether it can answer."""
        return self.process.poll() is None and state_of(self.pid) not in "TtZX"

    def sample(self):
        """Notes how long the append-only file was when."""
        if self.mode == "everysec":
            files = {path: path.stat().st_size for path in self.folder.glob("appendonlydir/*.incr.aof")}
            self.sizes.append((time.monotonic(), files))
            while len(self.sizes) > 1 and self.sizes[1][0] < time.monotonic() - POWER:
                self.sizes.popleft()

    def kill(self):
        send(self.pid, signal.SIGKILL)
        self.process.wait()
        if self.mode == "everysec" and self.sizes:
            for path, size in self.sizes[0][1].items():
                if path.exists() and path.stat().st_size > size:
                    self.losses += path.stat().st_size - size
                    os.truncate(path, size)
            self.sizes.clear()

    def ensure(self):
        """Runs, awake."""
        if self.process.poll() is not None:
            self.start()
        send(self.pid, signal.SIGCONT)


class Place:
    """Where a worker always is: another one comes when it has gone."""

    def __init__(self, fleet, number, say):
        self.fleet, self.number, self.say = fleet, number, say
        self.until = 0.0  # when the next one may come
        self.all = []  # every worker that was here, with the signal that may have ended it
        self.begin()

    def begin(self):
        self.worker = worker(self.fleet)
        self.all.append(self.worker)

    @property
    def living(self):
        return self.worker.process.poll() is None

    def below(self):
        """Pids of its stables, and of what runs below them."""
        pids = self.worker.tree()
        stables = [pid for pid in pids if parent_of(pid) == self.worker.pid]
        return stables, [pid for pid in pids if parent_of(pid) in stables]

    def tick(self):
        now = time.monotonic()
        if self.living:
            self.until = now + 0.3
            if now - self.worker.born > 3 * (1 + len(self.worker.sizes)):
                pids = [self.worker.pid, *self.worker.tree()]
                self.worker.sizes.append((rss([self.worker.pid]), rss(pids)))
        elif now > self.until:
            self.begin()


class Client:
    """A client's process, and its pipe; `told` has what it said."""

    def __init__(self, stage, number, url):
        self.stage, self.number, self.url = stage, number, url
        self.errors = stage.folder / f"client{number}.err"
        self.begin()

    def begin(self):
        words = [sys.executable, "-m", "tests.monkey.client", str(self.stage.folder), self.url, self.stage.namespace]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("a"),
            text=True,
            cwd=ROOT,
            env=self.stage.env,
            start_new_session=True,
        )
        self.commands = queue.Queue()
        for work in (self._read, self._write):
            threading.Thread(target=work, args=(self.process, self.commands), daemon=True).start()

    def _read(self, process, _commands):
        for line in process.stdout:
            try:
                self.stage.news.put((self.number, json.loads(line)))
            except ValueError:
                return  # its last words, cut off

    def _write(self, process, commands):
        # On a thread: a pipe that is full, to a client that still starts, must not hold up the faults.
        with contextlib.suppress(OSError):
            while (command := commands.get()) is not None:
                process.stdin.write(json.dumps(command) + "\n")
                process.stdin.flush()
            process.stdin.close()

    def send(self, **command):
        self.commands.put(command)

    def end(self):
        self.commands.put(None)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stage:
    """All of it."""

    def __init__(self, mode, say):
        self.folder = Path(tempfile.mkdtemp(prefix="nbq-monkey-"))
        self.home = self.folder / "home"
        self.home.mkdir(mode=0o700)
        for name in [name for name in os.environ if name.startswith("NBQUEUE_") and name != "NBQUEUE_TEST_SERVER"]:
            del os.environ[name]
        os.environ |= {"NBQUEUE_HOME": str(self.home), "NBQUEUE_PROGRESS": "0"}
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.namespace, self.news, self.say = "monkey", queue.Queue(), say
        for name in ("witness", "callbacks"):
            (self.folder / name).touch()
        self.server = Server(self.folder, mode)
        self.lines = [Line(self.server.socket) for _ in range(3)]
        self.killed = {}  # pids that we killed ourselves -> what they were
        self.extra = []  # workers that come and go
        urls = [self.server.url, self.lines[0].url, self.server.url, self.lines[1].url][:PLACES]
        self.fleets = [Fleet(url, self.namespace, self.home) for url in urls]
        self.places = []
        self.clients = []

    def begin(self):
        """Workers and clients; the secret is there by now."""
        self.places = [Place(fleet, number, self.say) for number, fleet in enumerate(self.fleets)]
        urls = [self.server.url, self.lines[2].url][:CLIENTS]
        self.clients = [Client(self, number, url) for number, url in enumerate(urls)]
        for place in self.places:
            place.worker.up()

    def kill(self, pid, what):
        """kill -9, remembered: the end of a job in that process is ours."""
        self.killed[pid] = what
        return send(pid, signal.SIGKILL)

    def tick(self):
        self.server.sample()
        for place in self.places:
            place.tick()

    def workers(self):
        return [worker for place in self.places for worker in place.all] + self.extra

    def calm(self):
        """All faults end: what was stopped goes on, what was killed is there again."""
        self.server.ensure()
        self.server.client.config_set("maxmemory", 0)
        for line in self.lines:
            line.calm()
        for worker in self.workers():
            if worker.process.poll() is None:
                send(worker.pid, signal.SIGCONT)
                for pid in worker.tree():
                    send(pid, signal.SIGCONT)

    def close(self, keep):
        for client in self.clients:
            client.end()
        self.calm()
        for worker in self.workers():
            if worker.process.poll() is None:
                worker.process.kill()
            worker.end()
        for line in self.lines:
            line.close()
        if born(self.server.pid):
            self.server.process.kill()
            self.server.process.wait()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
