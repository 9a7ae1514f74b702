"""One run: the plan is played, then all must come to rest, and is judged."""

import heapq
import itertools
import queue
import random
import time

from witness import Witness

from nbqueue import wire
from nbqueue.errors import NbqueueError
from tests.monkey import table
from tests.monkey.faults import Faults
from tests.monkey.plan import draw
from tests.monkey.stage import Stage
from tests.monkey.story import Story
from tests.monkey.verdict import Sampler, Verdict

TICK = 0.02
SECOND = 15  # batches of each client that the other looks at in the end


class Run:
    """`play`, then `judge`; `findings` is what is wrong."""

    def __init__(self, seed, minutes, mode):
        self.seed, self.seconds, self.mode = seed, minutes * 60, mode
        self.story = Story()
        self.plan = draw(seed, self.seconds)
        self.story.say(f"seed {seed}, {minutes} minutes, appendfsync {mode}: {len(self.plan)} events")
        self.stage = Stage(mode, self.story.say)
        self.story.say(f"all that happens is in {self.stage.folder}")
        sealer = wire.Sealer(wire.Keyring.load(self.stage.home), self.stage.namespace)
        self.witness = Witness(self.stage.server.url, self.stage.namespace, sealer, self.stage.folder)
        self.faults = Faults(self.stage, self.witness.broker)
        self.verdict = Verdict(self.stage, self.story, self.witness, strict=mode == "always")
        self.undo = []  # (when, number, what it is, what to do)
        self.count = itertools.count()
        self.findings = self.verdict.found

    def play(self):
        """All events at their times."""
        self.stage.begin()
        self.sampler = Sampler(self.witness, self.story, strict=self.mode == "always")
        begin, place = time.monotonic(), 0
        self.story.begun = begin
        while place < len(self.plan) or time.monotonic() < begin + self.seconds:
            now = time.monotonic() - begin
            while place < len(self.plan) and self.plan[place].at <= now:
                self.do(self.plan[place])
                place += 1
            self.turn()

    def turn(self):
        """What is due by now, and what was said."""
        while self.undo and self.undo[0][0] <= time.monotonic():
            self.end_fault()
        self.stage.tick()
        until = time.monotonic() + TICK
        while (left := until - time.monotonic()) > 0:
            try:
                self.story.hear(*self.stage.news.get(timeout=left))
            except queue.Empty:
                break

    def end_fault(self):
        """Ends the fault whose end comes first."""
        _, _, event, act = heapq.heappop(self.undo)
        if act() is False:  # the server must be awake for it
            self.undo_later(0.3, event, act)
        elif event.what == "kill client":
            self.restore(event.number)

    def undo_later(self, seconds, event, act):
        heapq.heappush(self.undo, (time.monotonic() + seconds, next(self.count), event, act))

    def do(self, event):
        """One event of the plan."""
        self.story.say(str(event))
        if event.what in {"submit", "cancel", "grow"}:
            if event.what == "grow":
                self.story.growing[event.facts["flow"]] = event.facts["more"]
            self.stage.clients[event.number].send(do=event.what, **event.facts)
            return
        try:
            back = self.faults.begin(event)
        except NbqueueError as why:
            self.story.say(f"not done: {why}")
            return
        self.story.faults[event.what] += 1
        if back is not None:
            self.undo_later(event.facts["back"], event, back)

    def restore(self, number):
        """A client that was killed is there again: it attaches to what it had."""
        story, client = self.story, self.stage.clients[number]
        for flow in story.open_flows(number):
            parts = story.parts[flow]
            if flow in story.growing and parts[0]["name"]:
                client.send(do="grow", flow=flow, more=story.growing[flow], part=parts[0])
            else:
                client.send(do="attach", parts=parts)
        for flow, facts in story.naming.items():
            if story.owner.get(flow, number) == number:
                client.send(do="submit", flow=flow, **facts)

    # ------------------------------------------------------------ the end

    def judge(self):
        """Calm, drain, and look at everything."""
        self.story.say("the faults are over")
        self.stage.server.ensure()
        while self.undo:
            self.end_fault()
        self.stage.calm()
        self.verdict.drained(self.turn)
        self.look_twice()
        self.findings += self.sampler.stop()
        for check in ("invariants", "reports", "agreement", "logs", "exits", "forgotten"):
            self.story.say(f"checks {check}")
            getattr(self.verdict, check)()
        self.story.say("the end\n")
        print(table.show(self.stage, self.story, self.verdict, self.sampler, self.seconds), flush=True)

    def look_twice(self):
        """Each client looks at some batches of the other: what one has in memory, the other reads from the store."""
        dice = random.Random(self.seed)
        expected = len(self.story.second)
        for client in self.stage.clients:
            others = [flow for flow, parts in self.story.parts.items() if parts and self.foreign(flow, client.number)]
            for flow in dice.sample(others, min(SECOND, len(others))):
                client.send(do="attach", parts=self.story.parts[flow])
                expected += len({(part["id"]) for part in self.story.parts[flow]})
        until = time.monotonic() + 60
        while len(self.story.second) < expected and time.monotonic() < until:
            self.turn()
        if len(self.story.second) < expected:
            self.verdict.note(f"only {len(self.story.second)} of {expected} batches could be read by the other client")

    def foreign(self, flow, number):
        return self.story.owner[flow] != number and self.story.parts[flow][0]["kind"] != "stream"

    def close(self, *, keep):
        self.stage.close(keep)
        self.witness.close()
