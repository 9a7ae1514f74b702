"""What is done to whom. A fault is begun by the function of its name; what that returns ends it, `back` s later."""

import signal
import time

import redis

from nbqueue.store.scripts import load
from tests.monkey.stage import send, worker


class Faults:
    """Does the faults of a plan on a stage."""

    def __init__(self, stage, broker):
        self.stage, self.broker = stage, broker

    def begin(self, event):
        """Does it; answers what ends it, or None."""
        name = "_" + event.what.replace(" ", "_")
        return getattr(self, name)(event)

    def _place(self, event):
        return self.stage.places[event.number]

    # ------------------------------------------------------------ workers

    def _kill_parent(self, event):
        place = self._place(event)
        place.worker.doom.add(signal.SIGKILL)
        self.stage.kill(place.worker.pid, "parent")
        place.until = time.monotonic() + event.facts["back"]

    def _kill_one(self, pids, event, what):
        if pids:
            self.stage.kill(pids[int(event.facts["draw"] * len(pids))], what)

    def _kill_stable(self, event):
        self._kill_one(self._place(event).below()[0], event, "stable")

    def _kill_horse(self, event):
        self._kill_one(self._place(event).below()[1], event, "horse")

    def _kill_tree(self, event):
        place = self._place(event)
        place.worker.doom.add(signal.SIGKILL)
        for pid in [place.worker.pid, *place.worker.tree()]:
            self.stage.kill(pid, "tree")
        place.until = time.monotonic() + event.facts["back"]

    def _stop(self, pids):
        for pid in pids:
            send(pid, signal.SIGSTOP)

        def go_on():
            for pid in pids:
                send(pid, signal.SIGCONT)

        return go_on

    def _stop_parent(self, event):
        return self._stop([self._place(event).worker.pid])

    def _stop_all(self, event):
        its = self._place(event).worker
        return self._stop([its.pid, *its.tree()])

    def _term(self, event):
        place = self._place(event)
        if place.living:
            place.worker.doom.add(signal.SIGTERM)
            send(place.worker.pid, signal.SIGTERM)

    def _extra(self, event, *words):
        made = worker(self._place(event).fleet, *words)
        self.stage.extra.append(made)
        return made

    def _burst(self, event):
        self._extra(event, "--burst")

    def _join(self, event):
        made = self._extra(event)

        def leave():
            if made.process.poll() is None:
                made.doom.add(signal.SIGTERM)
                send(made.pid, signal.SIGTERM)

        event.facts["back"] += 2
        return leave

    # ------------------------------------------------------------ the server

    def _pause_server(self, _event):
        server = self.stage.server
        send(server.pid, signal.SIGSTOP)

        def go_on():
            send(server.pid, signal.SIGCONT)

        return go_on

    def _kill_server(self, _event):
        self.stage.server.kill()
        return self.stage.server.ensure

    def _ask(self, *command):
        """False while the server is away."""
        if not self.stage.server.awake:
            return False
        try:
            self.stage.server.client.execute_command(*command)
        except (redis.RedisError, OSError):
            return False
        return True

    def _kill_links(self, event):
        self._ask("CLIENT", "KILL", "TYPE", "pubsub" if event.facts["draw"] < 0.3 else "normal", "SKIPME", "yes")

    def _flush_scripts(self, _event):
        self._ask("SCRIPT", "FLUSH")

    def _squeeze(self, _event):
        # Less than it has already: what is refused now is refused everywhere.
        self._ask("CONFIG", "SET", "maxmemory", 1 << 20)
        return lambda: self._ask("CONFIG", "SET", "maxmemory", 0)

    def _suspend(self, event):
        if self.stage.server.awake:
            self.broker.suspend(event.facts["back"])  # ends by itself

    # ------------------------------------------------------------ lines

    def _line(self, event):
        return self.stage.lines[event.number]

    def _cut(self, event):
        self._line(event).cut()

    def _lose(self, event):
        self._line(event).lose(load(event.facts["verb"]).sha, event.facts["times"])

    def _delay(self, event):
        line = self._line(event)
        line.delay = event.facts["by"]

        def calm():
            line.delay = 0.0

        event.facts["back"] += 1
        return calm

    def _silence(self, event):
        line = self._line(event)
        line.silence()
        return line._open.set

    # ------------------------------------------------------------ clients

    def _kill_client(self, event):
        client = self.stage.clients[event.number]
        if client.process.poll() is not None:
            return None  # it is dead already, and will be back
        client.process.kill()
        client.process.wait()
        return client.begin
