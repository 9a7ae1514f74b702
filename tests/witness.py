"""The invariants that must hold whatever happens, checked from Redis, from /proc, and from a diary that jobs write.

I1 each run of a job has exactly one outcome. I2 an outcome is never replaced. I3 it is that of the claim that settled.
I4 no two run one job at the same time. I5 the tally sums to n at every sample. I6 no process is left. I7 after
`forget` no key is left. I8 nothing that waits hangs past its bound. I9 losses never pass the limit. (I10, that nothing
which only reads opens a payload, is shown by poisoned payloads where it matters.)
"""

import itertools
import os
import threading
import time
from collections import defaultdict
from typing import NamedTuple

from fleet import leftovers
from helpers import wait_until
from redis.exceptions import RedisError

from nbqueue.errors import NoServer, ServerRefused
from nbqueue.model import Cause, Outcome, State, decode
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect
from nbqueue.store.decoding import cuts_of
from nbqueue.store.records import Stored, past
from nbqueue.wire import OUTCOME

BEAT = 0.05  # seconds between two lines of a job that runs
MOST_LOSSES = 3
STOPPED, MOMENT = 1.0, 1.0  # seconds: a silence that only a stop explains; how long one who is woken may go on
COUNTS = ("nrun", "nfin", "nfail", "ncan", "ndef", "npark")  # fields of a batch


class Life(NamedTuple):
    """One run of a job as its diary tells it; `end` is None where it was killed."""

    worker: str
    attempt: int
    pid: int
    begin: float
    last: float
    end: float | None
    lines: list[float]


def noting(path):
    """A context manager for a job's body, to travel by value: it notes begin, a beat every 50 ms, and end."""

    class Noting:
        def __enter__(self):
            import threading  # the stable has imported little

            import nbqueue

            job = nbqueue.get_current_job()
            self.who = f"{job.batch} {job.index} {job.attempt} {os.environ.get('NBQUEUE_MARK', '-')} {os.getpid()}"
            self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
            self.over = threading.Event()
            self.note("begin")
            self.thread = threading.Thread(target=self.beat, daemon=True)
            self.thread.start()
            return self

        def note(self, word):
            os.write(self.file, f"{word} {time.monotonic()} {self.who}\n".encode())

        def beat(self):
            while not self.over.wait(BEAT):
                self.note("beat")

        def __exit__(self, *_):
            self.over.set()
            self.thread.join()
            self.note("end")
            os.close(self.file)

    return Noting()


class Witness:
    """Watches a namespace on its own connection, and checks what it has seen at the end."""

    def __init__(self, server_url, namespace, sealer, folder):
        self.broker = Broker(connect(server_url), namespace)
        self.sealer = sealer
        self.path = folder / "witness"
        self.path.touch()
        self._seen = {}  # (batch, index, attempt, run) -> record
        self._wrong, self._samples = [], 0
        self._over = threading.Event()
        self._thread = None

    def job(self, seconds=0.05):
        """A function for `map` that notes its runs, takes so long, and returns its argument."""
        path = str(self.path)
        make = noting

        def witnessed(x):
            with make(path):
                time.sleep(seconds)
            return x

        return witnessed

    # ------------------------------------------------------------ while it happens

    def watch(self, *ids):
        """Samples tallies and outcomes of these batches until `check`, through all outages."""
        self._thread = threading.Thread(target=self._sample, args=(ids,), daemon=True)
        self._thread.start()
        return self

    def _sample(self, ids):
        while True:
            for batch in ids:
                try:
                    self._samples += self.look(batch)
                except (NoServer, ServerRefused, RedisError):
                    continue  # the server is away: that is no finding
                except Exception as why:
                    self._wrong.append(f"{type(why).__name__}: {why}")
            if self._over.wait(0.05):
                return

    def look(self, batch):
        """One sample: I5, and I2 of all that has ended. False where there is no such batch."""
        view = self.broker.view(batch)
        if view is None:
            return False
        self._sum(batch)
        for index, record in self.records(batch, view.n).items():
            before = self._seen.setdefault((batch, index, Stored.parse(record).attempt), record)
            assert before == record, f"I2: the outcome of {batch}:{index} was replaced"
        return True

    def _sum(self, batch):
        """I5: at one moment, the counts are those of the jobs that lie in each place, and leave none below zero."""
        part = self.broker.keys.part
        with self.broker.client.pipeline(transaction=True) as both:
            both.hmget(self.broker.keys.at("b", batch), "n", *COUNTS, "cuts").hlen(part(batch, "run"))
            both.hlen(part(batch, "out")).lrange(part(batch, "log"), 0, -1).llen(part(batch, "again"))
            (*values, cuts), running, ended, log, again = both.execute()
        n, started, finished, failed, canceled, deferred, parked = (int(value or 0) for value in values)
        cut = sum(int(hi) - int(lo) for lo, hi in (entry[1:].split(b"-") for entry in log if entry[:1] == b"c"))
        cut = max(cut, sum(hi - lo for lo, hi, _ in cuts_of(cuts)))  # a batch of one has no log
        said = dict(zip(("n", *COUNTS), values, strict=True))
        queued = n - started - finished - failed - canceled - deferred - parked
        assert queued >= again, f"I5: more of {batch} lie in again than are queued: {said}, {again}"
        assert started == running, f"I5: the tally of {batch} says {said}, but {running} are held"
        over = finished + failed + canceled
        assert over - cut <= ended <= over, f"I5: the tally of {batch} says {said}, but {ended} have an outcome"

    def records(self, batch, n):
        """The outcome records that stand, by index."""
        found = {}
        for start in range(0, n, 1000):
            indexes = range(start, min(n, start + 1000))
            pairs = zip(indexes, self.broker.outcomes(batch, indexes), strict=True)
            found.update((index, record) for index, record in pairs if record is not None)
        return found

    # ------------------------------------------------------------ at the end

    def lives(self):
        """What the diary tells: (batch, index) -> its runs, in the order in which they began."""
        found = defaultdict(dict)
        for line in self.path.read_text().splitlines():
            word, when, batch, index, attempt, mark, pid = line.split()
            runs = found[batch, int(index)]
            key = (mark, attempt, pid)
            life = runs.get(key) or Life(mark, int(attempt), int(pid), float(when), float(when), None, [])
            life.lines.append(float(when))
            runs[key] = life._replace(last=float(when), end=float(when) if word == "end" else life.end)
        return {job: sorted(runs.values(), key=lambda life: life.begin) for job, runs in found.items()}

    def check(self, *ids):
        """I1 to I5 and I9 for batches that are over."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(10)
            assert self._samples, "it was asked to watch, and has seen nothing"
        assert not self._wrong, self._wrong[:3]
        lives = self.lives()
        for batch in ids:
            view = self.broker.view(batch)
            assert view is not None, f"{batch} is gone"
            self.look(batch)
            assert view.done, f"{batch} is not over: {view.tally}"
            self._count(view)
            self._settled(view, lives)
        for (batch, index), runs in lives.items():
            apart(f"{batch}:{index}", runs)

    def _count(self, view):
        """I1: as many outcomes that stand as the tally says, each of the kind that it says."""
        records = self.records(view.id, view.n)
        kinds = {state: sum(Stored.parse(each).state is state for each in records.values()) for state in State}
        cut = sum(hi - lo for lo, hi, _ in view.cuts)
        assert kinds[State.FINISHED] == view.tally.finished, (kinds, view.tally)
        assert kinds[State.FAILED] == view.tally.failed, (kinds, view.tally)
        assert kinds[State.CANCELED] + cut >= view.tally.canceled, (kinds, view.tally)
        assert len(records) <= view.n

    def _settled(self, view, lives):
        """I3: a finished job has a run that ended, of the claim (its attempt) that the outcome names. I9."""
        for index, record in self.records(view.id, view.n).items():
            stored, runs = Stored.parse(record), lives.get((view.id, index), [])
            if not stored.signed:
                if stored.state is State.FAILED and stored.note().cause is Cause.LOST:
                    assert len(runs) >= MOST_LOSSES, f"I9: {view.id}:{index} was given up after {len(runs)} runs"
                continue
            body = self.sealer.unseal(OUTCOME, view.id, index, stored.body, stored.attempt)
            outcome = decode(Outcome, body)
            assert outcome.attempt == stored.attempt
            # All calls of `job` keep the diary; of another function's, those that have something to tell.
            if outcome.state is State.FINISHED and (runs or view.id.startswith("witnessed-")):
                its = [run for run in runs if run.attempt == outcome.attempt and run.end is not None]
                assert its, f"I3: no run of {view.id}:{index} ended that was the one of its outcome: {outcome}, {runs}"

    def withdrawn(self, batch, index):
        """How many earlier ends of a job the store remembers."""
        return len(past(self.broker.pasts(batch, [index])[0] or b""))

    def check_gone(self, *batches, marks=()):
        """I6 and I7: no process with these marks, and no key after these batches were forgotten."""
        assert not marks or not leftovers(list(marks)), "I6: processes are left"
        for batch in batches:
            batch.forget()
            prefix = self.broker.keys.part(batch.id, "")
            wait_until(lambda start=prefix: not list(self.broker.client.scan_iter(match=start + "*", count=1000)), 10)

    def close(self):
        self._over.set()
        self.broker.connection.close()


def apart(job, runs, *, woken=False):
    """I4: no run writes after the next one has begun, nor ends then.

    With `woken`, one may whose processes were all stopped, and woken at once: for the moment until it is killed.
    """
    for before, after in itertools.pairwise(runs):
        late = [when for when in before.lines if when > after.begin + BEAT / 2]
        early = [when for when in before.lines if when <= after.begin + BEAT / 2]
        if woken and late and late[0] - early[-1] > STOPPED and late[-1] - late[0] < MOMENT:
            continue
        assert before.last <= after.begin + BEAT / 2, f"I4: two runs of {job} overlap: {before}, {after}"
