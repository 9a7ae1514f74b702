"""A client's process: a session of its own, told over a pipe what to submit; it says what it sees, a line of JSON each.

`python -m tests.monkey.client FOLDER URL NAMESPACE`; it ends when its stdin does.
"""

import json
import queue
import random
import sys
import threading
import time
import traceback

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.errors import LostByServer, NoServer, ServerRefused
from tests.monkey import flow as flows

AWAY = (NoServer, ServerRefused)


class Client:
    def __init__(self, folder, session):
        self.folder, self.session = folder, session
        self.flows = {}  # number -> its parts
        self.later = []  # commands to try again

    # ------------------------------------------------------------ commands

    def obey(self, command):
        """Does what was told. While the server is away a submission is refused, all else is tried again."""
        try:
            getattr(self, command["do"])(**{name: value for name, value in command.items() if name != "do"})
        except AWAY as why:
            if command["do"] == "submit" and command["kind"] != "named":
                say("refused", flow=command["flow"], kind=command["kind"], why=f"{type(why).__name__}: {why}"[:120])
            else:
                self.later.append(command)
        except LostByServer as why:
            say("lost", flow=command.get("flow"), why=str(why))

    def submit(self, flow, kind, seed):
        if kind == "named":
            say("naming", flow=flow, kind=kind, seed=seed)
        for part in flows.Maker(self.folder, flow, kind, seed).parts():
            self.flows.setdefault(flow, []).append(part)
            say("made", part=part.told())

    def grow(self, flow, more, part=None):
        parts = [flows.Part(**part)] if part else self.flows.get(flow)
        if not parts:
            return
        part = flows.Maker(self.folder, flow, "named", 0).grown(parts[0], more)
        self.flows[flow] = [part]
        say("made", part=part.told(), instead=True)

    def cancel(self, flow, how):
        for part in self.flows.get(flow, ()):
            number = flows.cancel(part, how, random.Random(flow))
            say("canceled", flow=flow, number=number)

    def attach(self, parts):
        """Follows what an earlier client, or the other one, has submitted."""
        while parts:
            part = flows.Part(**parts[0])
            part.batch = nbqueue.attach(part.name or part.id)
            self.flows.setdefault(part.flow, []).append(part)
            parts.pop(0)  # the command may be tried again

    # ------------------------------------------------------------ looking

    def look(self):
        """One look at all that has not been reported."""
        again, self.later = self.later, []
        for command in again:
            self.obey(command)
        for number in list(self.flows):
            parts = self.flows[number]
            for place, part in enumerate(parts):
                if not part.reported and all(one.reported for one in parts[:place]):
                    self.look_at(part, parts[:place])

    def look_at(self, part, before):
        try:
            if not part.batch.wait(0):
                return
            if part.kind == "mend" and not part.follows and flows.mend(self.folder, part):
                return
            if flows.behind(part):
                return
            told = flows.report(part, before)
        except AWAY as why:
            if not part.stream or part.batch.ref.state.error is not why:
                return
            told = {"wrong": [], "odd": [], "counts": {"cut by the server's refusal": 1}, "n": 0, "short": True}
        except LostByServer as why:
            told = {"wrong": [], "odd": [], "counts": {"lost by server": 1}, "n": 0, "short": True}
            say("lost", flow=part.flow, why=str(why))
        except Exception:
            say("surprise", what=f"{part.kind} {part.batch!r}\n{traceback.format_exc()}")
            told = {"wrong": [], "odd": [], "counts": {"surprised": 1}, "n": 0, "short": True}
        part.reported = True
        say("ended", flow=part.flow, kind=part.kind, id=part.id, **told)

    def state(self):
        """What is not over, for a closing look."""
        left = [f"{part.kind} {part.batch!r}" for parts in self.flows.values() for part in parts if not part.reported]
        say("left", left=left, later=self.later)


_lock = threading.Lock()


def say(event, **facts):
    with _lock:
        print(json.dumps({"event": event, **facts}), flush=True)


def main():
    folder, url, namespace = sys.argv[1:4]
    commands = queue.Queue()

    def read():
        for line in sys.stdin:
            commands.put(json.loads(line))
        commands.put(None)

    threading.Thread(target=read, daemon=True).start()
    client = Client(folder, connected(url, namespace))
    say("up")
    while True:
        try:
            command = commands.get(timeout=0.1)
            if command is None:
                break
            client.obey(command)
        except queue.Empty:
            pass
        except Exception:
            say("surprise", what=f"{command}\n{traceback.format_exc()}")
        try:
            client.look()
        except Exception:
            say("surprise", what=traceback.format_exc())
            time.sleep(0.5)
    client.session.collector.stop()


def connected(url, namespace):
    """As connect, however long the server is away."""
    while True:
        try:
            return nbqueue.connect(url, namespace=namespace)
        except AWAY:
            sessions._current = None
            time.sleep(0.3)


if __name__ == "__main__":
    main()
