"""What happened so far: the plan's events as they are done, and all that the clients said."""

import time
from collections import Counter, defaultdict


class Story:
    """Prints a score, one line an event, and remembers."""

    def __init__(self):
        self.begun = time.monotonic()
        self.faults = Counter()
        self.parts = defaultdict(list)  # flow -> its parts, as the client told them
        self.ids = {}  # of all batches, in the order in which they were made
        self.owner = {}  # flow -> client
        self.naming = {}  # flow -> what was submitted under a name, until it is made
        self.growing = {}  # flow -> how many more, until it is made
        self.reports = {}  # (flow, id) -> what the client saw in the end
        self.second = {}  # the same, by the other client
        self.refused, self.lost, self.surprises = [], [], []
        self.cancels = 0
        self.left = {}  # client -> what it still waits for
        self.drained = 0.0  # seconds from the last fault until all was over

    def say(self, text):
        print(f"{time.monotonic() - self.begun:8.2f}s {text}", flush=True)

    def hear(self, client, news):
        """Something that a client said."""
        getattr(self, f"_{news.pop('event')}")(client, **news)

    def _up(self, client):
        self.say(f"client {client} is up")

    def _naming(self, _client, flow, **facts):
        self.naming[flow] = facts

    def _made(self, client, part, instead=False):
        flow = part["flow"]
        self.naming.pop(flow, None)
        if instead:
            self.growing.pop(flow, None)
            self.parts[flow] = []
        self.parts[flow].append(part)
        self.ids.setdefault(part["id"])
        self.owner[flow] = client

    def _refused(self, client, flow, kind, why):
        self.refused.append(kind)
        self.say(f"client {client}: {kind} {flow} was refused, {why}")

    def _lost(self, client, flow, why):
        self.lost.append(flow)
        self.say(f"client {client}: lost by the server: {why}")

    def _canceled(self, _client, flow, number):
        self.cancels += number
        del flow

    def _ended(self, client, flow, id, **told):  # noqa: A002 - as it is told
        where = self.reports if self.owner.get(flow) == client else self.second
        where[flow, id, told["n"]] = {"flow": flow, "id": id, **told}

    def _surprise(self, client, what):
        self.surprises.append(what)
        self.say(f"client {client} is surprised: {what}")

    def _left(self, client, left, later):
        self.left[client] = [*left, *map(str, later)]

    # ------------------------------------------------------------ what is open

    def open_flows(self, client):
        """Flows of a client with parts that it has not reported."""
        ids = {key[:2] for key in self.reports}
        return [
            flow
            for flow, parts in self.parts.items()
            if self.owner[flow] == client and any((flow, part["id"]) not in ids for part in parts)
        ]
