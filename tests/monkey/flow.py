"""What a client submits, and what it must see of it in the end."""

import functools
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbqueue
from nbqueue import Queue, Repeat, Retry
from nbqueue.client.batch import Batch
from nbqueue.model import State
from tests.monkey import jobs

KEPT = 3600.0  # enqueue keeps results for 500 s only
BAD = ("fail", "segv", "exit", "kill", "children", "meta", "big", "huge", "loud")


@dataclass
class Part:
    """One batch of a flow: what was asked for, to be compared with what came."""

    flow: int
    kind: str
    items: list  # (kind, seconds, x), one a job
    id: str = ""
    name: str | None = None
    follows: bool = False  # its jobs take the results of the flow's part before
    needs: bool = False  # it runs after the flow's parts before
    allow: bool = False  # even if they fail
    at: float = 0.0  # not before, on the monotonic clock
    stream: bool = False
    batch: Any = field(default=None, repr=False)
    reported: bool = False

    def told(self):
        """As JSON."""
        return {name: value for name, value in vars(self).items() if name not in {"batch", "reported"}}


class Maker:
    """Submits one flow; a flow is made of parts."""

    def __init__(self, folder, flow, kind, seed):
        self.folder, self.flow, self.kind = str(folder), flow, kind
        self.dice = random.Random(seed)

    def parts(self):
        """Submits, and yields each Part as it is made."""
        yield from getattr(self, f"_{self.kind}")()

    # ------------------------------------------------------------ items

    def items(self, n, kinds=("ok",), bad=0.0, work=3.0):
        """`n` items that take about `work` seconds in all."""
        each = min(0.8, work / n)
        long = self.dice.random() < 0.3
        found = []
        for x in range(n):
            kind = self.dice.choice(BAD) if self.dice.random() < bad else self.dice.choice(kinds)
            seconds = 0.0 if n > 100 and not long else round(self.dice.expovariate(1 / each), 3)
            found.append([kind, min(seconds, 2.0), x])
        return found

    def calls(self, items):
        return [(self.folder, self.flow, *item) for item in items]

    def part(self, items, batch, **facts):
        return Part(self.flow, self.kind, items, id=batch.id, batch=batch, **facts)

    def mapped(self, items, **options):
        return nbqueue.starmap(jobs.play, self.calls(items), **options)

    def one(self, item, **options):
        """A single job."""
        verbs = Queue().options(result_ttl=KEPT, **options)
        return Batch(verbs.enqueue(jobs.play, self.folder, self.flow, *item).batch)

    # ------------------------------------------------------------ kinds

    def _map(self):
        n = int(2 ** self.dice.uniform(0, 8.97))
        items = self.items(n, bad=self.dice.choice((0, 0, 0.05, 0.3)) if n < 100 else self.dice.choice((0, 0.02)))
        options = self.dice.choice(({}, {}, {}, {"isolate": True} if n < 30 else {}, {"at_front": True}))
        yield self.part(items, self.mapped(items, **options))

    def _single(self):
        for item in self.items(self.dice.randrange(1, 9), bad=0.15):
            yield self.part([item], self.one(item))

    def _retry(self):
        items = self.items(self.dice.randrange(1, 30), kinds=("ok", "flaky"))
        interval = self.dice.choice((0, 0.2, [0.1, 1.0]))
        yield self.part(items, self.mapped(items, retry=Retry(5, interval=interval)))

    def _mend(self):
        items = self.items(self.dice.randrange(1, 60), kinds=("ok", "ok", "mend"))
        yield (first := self.part(items, self.mapped(items)))
        if self.dice.random() < 0.5:
            yield self._following(first)

    def _then(self):
        items = self.items(self.dice.randrange(1, 60), kinds=("ok", "ok", "ok", "fail"))
        yield (first := self.part(items, self.mapped(items)))
        yield self._following(first)

    def _following(self, first):
        batch = first.batch.then(functools.partial(jobs.after, self.folder))
        return self.part([["after", 0.01, x] for _, _, x in first.items], batch, follows=True)

    def _depends(self):
        kinds = ("ok",) if self.dice.random() < 0.6 else ("ok", "fail")
        items = self.items(self.dice.randrange(1, 12), kinds=kinds)
        yield (first := self.part(items, self.mapped(items)))
        allow = self.dice.random() < 0.5
        need = nbqueue.Dependency(first.batch, allow_failure=allow)
        item = ["ok", 0.05, 1]
        yield self.part([item], self.one(item, depends_on=need), needs=True, allow=allow)

    def _cancel(self):
        items = self.items(self.dice.randrange(5, 200), work=12.0)
        yield self.part(items, self.mapped(items))

    def _later(self):
        for item in self.items(self.dice.randrange(1, 4)):
            wait, at = round(self.dice.uniform(0.2, 4.0), 2), time.monotonic()
            job = Queue().options(result_ttl=KEPT).enqueue_in(wait, jobs.play, self.folder, self.flow, *item)
            yield self.part([item], Batch(job.batch), at=at + wait)

    def _repeat(self):
        item = ["ok", 0.05, 3]
        yield self.part([item], self.one(item, repeat=Repeat(times=2, interval=self.dice.choice((0, 0.3)))))

    def _limit(self):
        items = [[self.dice.choice(("late", "late", "stubborn")), 0.0, x] for x in range(self.dice.randrange(1, 4))]
        yield self.part(items, self.mapped(items, timeout=0.5, grace=0.3))

    def _named(self):
        items = self.items(self.dice.randrange(1, 60))
        name = f"named{self.flow}"
        yield self.part(items, self.mapped(items, name=name), name=name)

    def grown(self, part, more):
        """The same cell again, with further items."""
        last = part.items[-1][2]
        items = [*part.items, *(["ok", 0.02, last + 1 + x] for x in range(more))]
        return self.part(items, self.mapped(items, name=part.name), name=part.name)

    def _told(self):
        for item in self.items(self.dice.randrange(1, 5), kinds=("ok", "ok", "fail")):
            hooks = {f"on_{word}": jobs.teller(self.folder, word) for word in ("success", "failure")}
            yield self.part([item], self.one(item, **hooks))

    def _stream(self):
        items = self.items(self.dice.randrange(2, 60))
        batch = nbqueue.starmap(jobs.play, slowly(self.calls(items)))
        yield self.part(items, batch, stream=True)

    def _poison(self):
        item = ["poison", 0.0, 0]
        yield self.part([item], self.one(item))


def slowly(calls):
    """An iterator without length."""
    for call in calls:
        time.sleep(0.02)
        yield call


# ---------------------------------------------------------------- afterwards


def behind(part):
    """Whether the store knows better of what depends on others: while it is away, memory is what there is."""
    if not (part.follows or part.needs):
        return False
    view = part.batch.ref.session.broker.view(part.id)
    return view is not None and view.tally != part.batch.tally


def report(part, before):
    """What a client sees of a part that is over; `before` are the flow's earlier parts. Raises NoServer.

    `wrong` is never right; `odd` are ends that were not foreseen, which a fault may explain.
    """
    batch, n = part.batch, len(part.batch)
    short = part.stream and n < len(part.items)
    found = ((index, batch.ref.state.outcome(index, batch.ref.session.sealer)) for index in batch.ref.indexes)
    outcomes = {index: outcome for index, outcome in found if outcome is not None}
    values = batch.results(errors="return")
    wrong, odd, counts = [], [], {}
    if not short and n != len(part.items):
        wrong.append(f"{n} jobs, but {len(part.items)} items")
    if len(values) != n or len(outcomes) != n:
        wrong.append(f"{n} jobs, {len(values)} values, {len(outcomes)} outcomes")
    for place, index in enumerate(batch.ref.indexes):
        if index not in outcomes or place >= len(part.items):
            continue
        outcome, (kind, _, x) = outcomes[index], part.items[place]
        foreseen = _foreseen(part, place, kind, before)
        got = (str(outcome.state), outcome.cause and str(outcome.cause))
        word = "/".join(filter(None, got))
        counts[word] = counts.get(word, 0) + 1
        if got != foreseen:
            text = str(outcome.failure or "")[:150]
            odd.append([batch.id, index, kind, *got, outcome.code, outcome.attempt, text])
        if outcome.state is State.FINISHED:
            right = jobs.value(before[-1].items[place][0], x) + 1 if part.follows else jobs.value(kind, x)
            if values[place] != right:
                wrong.append(f"{batch.id}:{index} gave {str(values[place])[:60]!r}, not {str(right)[:60]!r}")
        elif not isinstance(values[place], BaseException):
            wrong.append(f"{batch.id}:{index} is {word}, and gave {values[place]!r}")
    wrong += _frame(part, outcomes) + _meta(part, outcomes)
    return {"wrong": wrong, "odd": odd, "counts": counts, "n": n, "short": short}


def _foreseen(part, place, kind, before):
    if part.follows:
        source = before[-1].batch
        if source[place].outcome.state is not State.FINISHED:
            return ("canceled", "dependency")
        return ("finished", None)
    if part.needs and not part.allow and any(one.batch.tally.finished < len(one.batch) for one in before):
        return ("canceled", "dependency")
    return jobs.ENDS[kind]


def _frame(part, outcomes):
    """Every row of the frame is that of its job."""
    batch = part.batch
    frame = batch.to_frame(timeout=10)
    ids = [batch.id] if batch.single else [f"{batch.id}:{index}" for index in batch.ref.indexes]
    wrong = []
    if list(frame["job_id"]) != ids:
        wrong.append(f"the frame of {batch.id} has the rows {list(frame['job_id'])[:5]}...")
    if list(frame["status"]) != [str(outcomes[index].state) for index in batch.ref.indexes if index in outcomes]:
        wrong.append(f"the frame of {batch.id} has the wrong states")
    return wrong


def _meta(part, outcomes):
    wrong = []
    for place, (kind, _, x) in enumerate(part.items[: len(part.batch)]):
        index = part.batch.ref.indexes[place]
        if kind == "meta" and outcomes[index].state is State.FINISHED:
            job = part.batch[place]
            if job.meta != {"x": x} or job.progress is None or job.progress[0] != 3:
                wrong.append(f"the meta of {job.id} is {job.meta}, its progress {job.progress}")
    return wrong


def mend(folder, part):
    """Runs again what failed only because it was not mended yet; answers whether there was any."""
    states = [(kind, part.batch[place].outcome) for place, (kind, _, _) in enumerate(part.items)]
    if not any(kind == "mend" and outcome.state is not State.FINISHED for kind, outcome in states):
        return False
    Path(folder, f"mended-{part.flow}").touch()
    part.batch.retry()
    return True


def cancel(part, how, dice):
    """Cancels some or all of it."""
    batch = part.batch
    if how == "batch":
        return batch.cancel()
    if how == "waiting":
        return batch.cancel(running=False)
    rows = dice.sample(range(len(batch)), k=min(len(batch), 1 if how == "job" else 8))
    return sum(batch[row].cancel() for row in rows)
