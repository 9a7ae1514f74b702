"""The invariants at the end of a run; each finding is a line."""

import itertools
import re
import signal
import threading
import time
from collections import Counter
from functools import partial

from fleet import leftovers
from helpers import leaks
from witness import Witness, apart

from nbqueue.errors import NbqueueError

DRAIN = 120.0  # seconds; an upload whose client was killed is open for 30
LONGEST = 120.0  # seconds that a job which was cut off may wait, while others run
SLACK = 0.1  # seconds by which the clocks of two processes may differ here


class Sampler:
    """Looks at some batches again and again while things happen: I5, and I2 of what has ended."""

    def __init__(self, witness, story, *, strict):
        self.witness, self.story, self.strict = witness, story, strict
        self.over, self.found, self.looks = threading.Event(), [], 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        turn = 0
        while not self.over.wait(0.1):
            ids = list(self.story.ids)[-40:]
            if not ids:
                continue
            turn += 1
            batch = ids[turn % len(ids)]
            try:
                if self.strict:
                    self.witness.look(batch)
                elif self.witness.broker.view(batch):
                    self.witness._sum(batch)
                self.looks += 1
            except AssertionError as why:
                self.found.append(f"while it ran: {why}")
            except NbqueueError:
                continue  # the server is away
            except Exception as why:  # as above, in the words of redis-py
                if "redis" not in type(why).__module__:
                    self.found.append(f"the sampler: {why!r}")

    def stop(self):
        self.over.set()
        self.thread.join(20)
        return self.found


class Verdict:
    """Collects findings."""

    def __init__(self, stage, story, witness: Witness, *, strict):
        self.stage, self.story, self.witness, self.strict = stage, story, witness, strict
        self.broker = witness.broker
        self.found = []
        self.explained = Counter()

    def note(self, text):
        self.found.append(text)
        self.story.say(f"FINDING {text}")

    # ------------------------------------------------------------ I8

    def drained(self, turn):
        """Waits until all is over, here and there; `turn` keeps things going."""
        begin = time.monotonic()
        while time.monotonic() < begin + DRAIN:
            turn()
            if not any(self.story.open_flows(client.number) for client in self.stage.clients) and not self.undone():
                self.story.drained = time.monotonic() - begin
                return
        for client in self.stage.clients:
            client.send(do="state")
        until = time.monotonic() + 5
        while time.monotonic() < until:
            turn()
        undone = [f"{view.id} ({view.tally})" for view in self.undone()]
        self.note(f"I8: after {DRAIN:.0f} s not over: in the store {undone}, in the clients {self.story.left}")

    def undone(self):
        return [view for view in self.broker.batches() if not view.done]

    # ------------------------------------------------------------ I1 to I5, I9

    def invariants(self):
        known = {view.id for view in self.broker.batches()}
        missing = set(self.story.ids) - known
        if missing and self.strict:
            self.note(f"batches are gone: {missing}")
        for view in self.broker.batches():
            self._check(view)
        lives = self.witness.lives()
        for (batch, index), runs in lives.items() if self.strict else ():
            self._guarded(partial(apart, woken=True), f"{batch}:{index}", runs)
            for before, after in itertools.pairwise(runs):
                if before.end is None and after.begin - before.last > LONGEST:
                    wait = after.begin - before.last
                    self.note(f"I8: {batch}:{index} waited {wait:.0f} s to run again after it was cut off")
        self._callbacks()
        self._times(lives)

    def _check(self, view):
        lives = self.lives
        if self.strict:
            self._guarded(self.witness.look, view.id)
        if not view.done:
            return
        self._guarded(self.witness._count, view)
        self._guarded(self.witness._settled, view, lives)

    @property
    def lives(self):
        if not hasattr(self, "_lives"):
            self._lives = self.witness.lives()
        return self._lives

    def _guarded(self, check, *args):
        try:
            check(*args)
        except AssertionError as why:
            self.note(str(why))

    def _callbacks(self):
        """At most one callback a job, and the one that fits its end."""
        told = Counter((self.stage.folder / "callbacks").read_text().splitlines())
        ends = {}
        for report in self.story.reports.values():
            if report["kind"] == "told":
                ends[report["id"]] = next(iter(report["counts"]), "")
        for line, number in told.items():
            word, job = line.split()
            if number > 1 and self.strict:
                self.note(f"the callback {word} of {job} ran {number} times")
            fits = {"success": "finished", "failure": "failed"}[word]
            if self.strict and job in ends and not ends[job].startswith(fits):
                self.note(f"the callback {word} of {job} ran, but it is {ends[job]}")

    def _times(self, lives):
        """What is scheduled, or depends on others, begins when it may."""
        for flow, parts in self.story.parts.items():
            for place, part in enumerate(parts):
                runs = lives.get((part["id"], 0), ())
                begun = min((run.begin for run in runs), default=None)
                if part["at"] and begun is not None and begun < part["at"] - SLACK:
                    self.note(f"{part['id']} began {part['at'] - begun:.2f} s before its time")
                if part["needs"] and begun is not None and self.strict:
                    before = [life for one in parts[:place] for life in self._ends(lives, one["id"])]
                    if before and max(before) > begun + SLACK:
                        self.note(f"{part['id']} of flow {flow} began before what it depends on had ended")

    def _ends(self, lives, batch):
        """When the runs that count ended: the first end of a job is the one that let its dependents go."""
        for (its, _), runs in lives.items():
            if its == batch and (ends := [run.end for run in runs if run.end is not None]):
                yield min(ends)

    # ------------------------------------------------------------ what the clients saw

    def reports(self):
        budget = Counter(self.stage.killed.values())
        for report in [*self.story.reports.values(), *self.story.second.values()]:
            for text in report["wrong"]:
                self.note(f"{report['kind']} {report['flow']}: {text}")
        for report in self.story.reports.values():
            for odd in report["odd"]:
                why = self._explain(report, odd, budget)
                self.explained[why or "nothing"] += 1
                if why is None:
                    self.note(f"{report['kind']} {report['flow']}: nothing explains the end {odd}")
        for text in self.story.surprises:
            self.note(f"a client was surprised: {text}")
        if self.strict and self.story.lost:
            self.note(f"lost by the server: {self.story.lost}")

    def agreement(self):
        """What a client counts is what the store counts."""
        if not self.strict:
            return
        for report in self.story.reports.values():
            view = self.broker.view(report["id"])
            if view is None or view.n != report["n"]:
                continue
            seen = Counter()
            for word, number in report["counts"].items():
                seen[word.partition("/")[0]] += number
            store = {state: getattr(view.tally, state) for state in ("finished", "failed", "canceled")}
            if {state: seen[state] for state in store} != store:
                self.note(f"{report['id']}: the client saw {dict(seen)}, the store has {view.tally}")

    def _explain(self, report, odd, budget):
        """The fault that explains an end which was not foreseen; None if there is none."""
        batch, index, _kind, state, cause, code, _attempt, text = odd
        faults, answer = self.story.faults, None
        if state == "canceled" and cause == "user" and report["kind"] == "cancel":
            answer = "canceled"
        elif cause == "crashed" and text.startswith("Crashed: the process that forks") and budget["stable"]:
            answer = "stable killed"
        elif cause == "crashed" and code == -9:
            runs = self.lives.get((batch, index), ())
            if any(run.pid in self.stage.killed for run in runs):
                answer = "horse killed"
            elif budget["horse"] > 0:  # before it could write that it began
                budget["horse"] -= 1
                answer = "horse killed at once"
        elif cause == "lost" and sum(faults[each] for each in WORKER_LOSSES) >= 3:
            answer = "worker lost three times"
        elif not self.strict and cause == "lost_by_server":
            answer = "server forgot"
        return answer

    # ------------------------------------------------------------ I6, I7, logs

    def logs(self):
        """No worker said, and no client printed, what it should not."""
        for worker in self.stage.workers():
            log = worker.log
            if bad := re.search("ends by an unexpected|Traceback|please report", log):
                self.note(f"the log of worker {worker.pid}:\n{log[max(0, bad.start() - 500) : bad.start() + 3000]}")
        for client in self.stage.clients:
            lines = client.errors.read_text().splitlines()
            # Warnings to the user, each with its line of source below it, are as good as lines of ours.
            fine = ("nbqueue: ", "  frame = batch.to_frame", "  frame.warn_if_truncated(", "  return session.connect(")
            strange = [line for line in lines if line and "UserWarning: " not in line and not line.startswith(fine)]
            if strange:
                self.note(f"client {client.number} printed: {strange[:40]}")

    def exits(self):
        """Workers leave when told, with 0; nothing of them stays."""
        for worker in self.stage.workers():
            if worker.process.poll() is None:
                worker.doom.add(signal.SIGTERM)
                worker.process.terminate()
        for worker in self.stage.workers():
            try:
                code = worker.process.wait(30)
            except Exception:
                self.note(f"I8: worker {worker.pid} does not leave: {worker.log[-1500:]}")
                continue
            if not self._fair(worker, code):
                self.note(f"worker {worker.pid} ({worker.words}, sent {worker.doom}) left with {code}:\n{worker.log}")
        left = leftovers([worker.mark for worker in self.stage.workers()])
        if left:
            self.note(f"I6: processes are left: {left}")

    def _fair(self, worker, code):
        """Whether a worker may have left so: killed, or before it was up."""
        if code == -signal.SIGKILL:
            poison = any(part["kind"] == "poison" for parts in self.story.parts.values() for part in parts)
            return signal.SIGKILL in worker.doom or poison
        if " is up: " not in worker.log and code != 0:
            return (code == -signal.SIGTERM and signal.SIGTERM in worker.doom) or worker.log.startswith("nbqueue: ")
        return code == 0

    def forgotten(self):
        """After all is forgotten nothing stays but what is permanent, and that is empty."""
        for view in self.broker.batches():
            if not self.broker.forget(view.id):
                self.note(f"I7: {view.id} cannot be forgotten: {view.tally}")
        keys, client = self.broker.keys, self.broker.client
        left = [key.decode() for key in client.scan_iter(match=keys.prefix + "*", count=1000)]
        parts = [key for key in left if key.startswith(keys.prefix + "b:")]
        if parts or leaks(self.broker):
            self.note(f"I7: keys are left: {parts[:20]} {leaks(self.broker)[:20]}")
        for queue in self.broker.queues():
            counts = {name.decode(): int(count) for name, count in client.hgetall(keys.at("tally", queue)).items()}
            counts.pop("version", None)
            if any(counts.values()):
                self.note(f"I5: all is forgotten, but the queue {queue} counts {counts}")
            for name in ("open", "ended", "failed"):
                if client.zcard(keys.at(name, queue)):
                    self.note(f"I7: {name}:{queue} still has {client.zrange(keys.at(name, queue), 0, 5)}")
        for name in ("workers", "batches", "later"):
            if client.zcard(keys.at(name)):
                self.note(f"I7: {name} still has {client.zrange(keys.at(name), 0, 5)}")


WORKER_LOSSES = ("kill parent", "kill tree", "stop parent", "stop all", "silence", "pause server", "delay")
