"""The same cell in new processes and new kernels: nothing runs twice, and what changed is told. And random numbers."""

import os
import random
import subprocess
import sys
import textwrap

import pytest
from helpers import wait_until
from jupyter_client.manager import KernelManager

import nbqueue

BEGIN = """
import dataclasses, enum, os, sys
import numpy as np, pandas as pd
import nbqueue
nbqueue.connect({url!r}, namespace={space!r})
"""
CELL = """
class Kind(enum.Enum):
    plain = 1
    squared = 2

@dataclasses.dataclass
class Model:
    weights: np.ndarray
    words: set = dataclasses.field(default_factory=lambda: {"a", "bb", "ccc"})
    def score(self, x):
        return float(self.weights.sum()) * x + len(self.words)

model = Model(np.arange(4.0))
table = pd.DataFrame({"k": ["u", "v"], "w": pd.Categorical(["r", "s"])})

def factor(kind):
    return 2 if kind in {Kind.squared, "2"} else 1

def made(power):
    def call(item, *, shift=frozenset({"x", "y", "z"})):
        number, kind, tags, array = item
        open(DIARY, "a").write(f"{number}\\n")
        return model.score(number) ** power * factor(kind) + len(tags | shift) + array.sum() + len(table)
    return call

items = [(n, Kind(n % 2 + 1), {"t", "u", str(n)}, np.full(3, n)) for n in range(N)]
batch = nbqueue.map(made(2), items, name="study", progress=False)
print(batch.id, batch.ref.note, [round(float(each)) for each in batch.results(timeout=20)])
"""


@pytest.fixture
def run(server, session, home, diary):
    """Runs the cell in a new process, and gives what it said."""

    def run_it(text=CELL, n=3, seed="0"):
        facts = {"url": server.url, "space": session.settings.namespace}
        code = f"{BEGIN.format(**facts)}\nDIARY, N = {str(diary.path)!r}, {n}\n{text}"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
        return done.stdout + done.stderr

    return run_it


def test_a_new_process_finds_what_ran_with_closures_classes_sets_and_arrays(run, fleet, diary):
    fleet.start().up()
    first = run(seed="1")
    assert "Traceback" not in first, first
    assert sorted(diary.lines) == ["0", "1", "2"]
    # Another kernel: other hashes, other lines, other spacing, a comment and a docstring more.
    moved = "\n\n# again\n" + CELL.replace("        number, kind", "        'Says what.'\n\n        number, kind")
    assert not first.count("Error"), first
    second = run(moved, seed="2")
    assert "3 of 3 jobs reused; nothing new runs" in second
    assert second.split()[0] == first.split()[0]
    assert second.splitlines()[0].rpartition("[")[2] == first.splitlines()[0].rpartition("[")[2]
    assert "3 of 5 jobs reused; 2 are new" in run(n=5, seed="3")
    assert sorted(diary.lines) == ["0", "1", "2", "3", "4"]
    assert nbqueue.attach("study").wait(10)


CHANGES = {
    ("made(2)", "made(3)"): "the captured variable `power`: 2 -> 3",
    ("arange(4.0)", "arange(5.0)"): "the global `model` changed",
    ('"ccc"}', '"ccc", "d"}'): "the global `model` changed; line",
    ("* x +", "* 2 * x +"): "the code of Model.score changed in line",
    ("squared = 2", "squared = 3"): "of Kind",
    ('["r", "s"]', '["r", "r"]'): "the global `table` changed",
    ("return 2 if", "return 5 if"): ": 2 -> 5",
    ('"x", "y", "z"', '"x", "y"'): "the default of `shift` changed",
}
TRY = """
for old, new in {changes!r}:
    try:
        exec({cell!r}.replace(old, new), globals())
    except nbqueue.errors.Changed as why:
        print("| " + why.facts["what"])
"""


def test_a_new_process_is_told_what_changed(run, fleet, diary):
    fleet.start().up()
    plain = CELL.replace("Kind(n % 2 + 1)", "n")
    assert "Traceback" not in run(plain)
    said = run(TRY.format(changes=list(CHANGES), cell=plain), seed="4").splitlines()
    assert len(said) == len(CHANGES), said
    for line, told in zip(said, CHANGES.values(), strict=True):
        assert told in line
    assert len(diary.lines) == 3


# ---------------------------------------------------------------- kernels


class Kernel:
    """A Jupyter kernel; `run(cell)` gives all that it displayed and printed."""

    def __init__(self):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.kernel_spec.argv[0] = sys.executable
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(60)

    def run(self, cell):
        said = []
        answer = self.client.execute_interactive(
            textwrap.dedent(cell), timeout=60, output_hook=lambda message: said.append(str(message["content"]))
        )
        return answer["content"]["status"], "".join(said)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(home, monkeypatch):
    monkeypatch.delenv("NBQUEUE_PROGRESS")
    opened = []

    def new():
        opened.append(Kernel())
        return opened[-1]

    yield new
    for each in opened:
        each.close()


def test_kernels_reattach_and_say_that_the_earlier_batch_of_a_cell_still_runs(server, session, kernel):
    begin = BEGIN.format(url=server.url, space=session.settings.namespace)
    define = "limit = 4\ndef half(x):\n    return x / limit"
    first = kernel()
    assert first.run(begin + define)[0] == "ok"
    cell = "batch = nbqueue.map(half, range(3))"
    status, said = first.run(cell)
    assert status == "ok"
    assert "still running" not in said
    earlier = nbqueue.attach().id
    status, said = first.run(cell)
    assert f"still running: {earlier} (3 queued)" in said
    assert f"nbqueue.attach(&#x27;{earlier}&#x27;).cancel()" in said
    assert "Cancel the earlier batch" in said
    assert first.run("batch.ref.earlier[0].cancel()")[0] == "ok"
    wait_until(lambda: nbqueue.attach(earlier).tally.canceled == 3)
    # What the third says of earlier ones; an older panel may still write into the channel.
    said = first.run(f"{cell}\nprint('earlier:', [each.id for each in batch.ref.earlier], 'so far')")[1]
    assert earlier not in said.partition("earlier:")[2].partition("so far")[0]
    named = "batch = nbqueue.map(half, range(3), name='halves'); batch.id"
    told = first.run(named)[1]
    made = nbqueue.attach("halves").id
    assert made in told
    second = kernel()
    assert second.run(begin + define)[0] == "ok"
    assert "3 of 3 jobs reused; nothing new runs" in second.run(named)[1]
    assert nbqueue.attach("halves").tally.n == 3
    status, said = second.run("limit = 5\n" + named)
    assert status == "error"
    assert "the global `limit`: 4 -> 5" in said
    assert made in second.run("again = nbqueue.attach('halves')")[1]  # its panel
    for batch in nbqueue.batches()["id"]:
        nbqueue.attach(batch).cancel()


# ---------------------------------------------------------------- random numbers


def test_a_job_keeps_its_stream_whatever_worker_order_run_and_submission(session, fleet, tmp_path):
    def draw(x, broken=str(tmp_path / "mended")):
        import random

        import numpy as np

        found = random.random(), float(np.random.random()), float(nbqueue.rng().random())  # noqa: NPY002
        if x == 2 and not os.path.exists(broken):  # noqa: PTH110
            raise ValueError(repr(found))
        return found

    fleet.start(slots=3).up()
    shared = nbqueue.map(draw, range(8), seed=11, slice=5, name="draw")
    shared.wait(20)
    failed = shared[2].error
    (tmp_path / "mended").touch()
    shared.retry().wait(20)
    first = shared.results()
    assert failed == f"ValueError: {first[2]!r}"
    fleet.start(slots=1).up()
    assert nbqueue.map(draw, range(8), seed=11, isolate=True).results(timeout=20) == first
    assert nbqueue.map(draw, [7] * 8, seed=11).results(timeout=20) == first
    state = random.getstate()
    for inline in (True, "collect"):
        assert nbqueue.map(draw, range(8), seed=11, inline=inline).results() == first
    assert random.getstate() == state
    more = nbqueue.map(draw, [9, 7, 0, 8], name="draw")
    assert [job.index for job in more] == [8, 7, 0, 9]
    found = more.results(timeout=20)
    assert found[1:3] == [first[7], first[0]]
    assert nbqueue.map(draw, range(10), seed=11).results(timeout=20)[8:] == [found[0], found[3]]
    drawn = [nbqueue.map(draw, range(6), isolate=isolate) for isolate in (True, False)]
    jobs = [nbqueue.submit(draw, 1) for _ in range(4)]
    numbers = [number for row in (*drawn[0].results(timeout=20), *drawn[1].results(timeout=20)) for number in row]
    numbers += [number for job in jobs for number in job.wait(20)]
    assert len(set(numbers)) == len(numbers)
    assert nbqueue.map(draw, range(6), seed=drawn[0].seed).results(timeout=20) == drawn[0].results()
