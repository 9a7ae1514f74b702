"""Debugging: a job's call again in this process, and the notebook's own lines in its traceback."""

from __future__ import annotations

import linecache
import random
import subprocess
import sys
import traceback

import numpy as np
import pytest

import nbqueue
from nbqueue import get_current_job
from nbqueue.client.session import session as session_module
from nbqueue.errors import BadInput, InsideJob
from nbqueue.worker import loading

CELL = """
secret = "not sent"

def inner(x):
    limit = 10
    return limit // x  # where it breaks

def outer(x):
    return inner(x), random.random()
"""


@pytest.fixture
def fleet(fleet):
    fleet.start().up()
    return fleet


@pytest.fixture
def cell(tmp_path):
    """A notebook's cell, as IPython runs it: no file, known to linecache alone."""
    name = str(tmp_path / "ipykernel_7/1234.py")
    linecache.cache[name] = len(CELL), None, CELL.splitlines(keepends=True), name
    space = {"__name__": "__main__", "random": random}
    exec(compile(CELL, name, "exec"), space)
    yield name, space
    linecache.cache.pop(name, None)
    loading._lines.pop(name, None)


def test_a_remote_traceback_shows_the_lines_of_the_cell_in_any_process(session, fleet, cell):
    name, space = cell
    batch = nbqueue.map(space["outer"], [2, 0])
    del linecache.cache[name]  # a worker, or tomorrow's kernel, has no such file
    batch.wait(20)
    told = str(batch[1].exception().__cause__)
    assert "return limit // x  # where it breaks" in told
    assert "return inner(x), random.random()" in told
    with pytest.raises(ZeroDivisionError) as caught:
        nbqueue.attach(batch.id)[1].replay()
    assert caught.traceback[-1].locals["limit"] == 10
    assert "limit // x  # where" in "".join(traceback.format_exception(caught.value))
    assert "not sent" not in "".join(linecache.getlines(name))


def test_what_this_process_knows_of_a_file_is_not_replaced(cell):
    name, _ = cell
    loading.know_lines({name: [(2, "x\n")], "other": [(2, "two\nthree\n")]})
    loading.know_lines({"other": [(5, "five")]})
    assert linecache.getlines(name) == CELL.splitlines(keepends=True)
    assert [linecache.getline("other", line) for line in (1, 2, 3, 4, 5)] == ["\n", "two\n", "three\n", "\n", "five\n"]
    del linecache.cache["other"], loading._lines["other"]


def draw(x, scale=1):
    here = get_current_job()
    here.meta["tried"] = True
    here.save_meta()
    from numpy.random import rand  # which the worker has not imported before the first job asks for it

    legacy = float(rand())  # noqa: NPY002
    return random.random(), legacy, float(nbqueue.rng().random()), x * scale, here.index


def test_a_replay_draws_the_same_numbers_and_leaves_no_trace(session, fleet):
    batch = nbqueue.map(draw, range(3), seed=11)
    expected = batch.results(timeout=20)
    alone = nbqueue.map(draw, range(3), seed=11, isolate=True)  # three processes that begin afresh
    assert alone.results(timeout=20) == expected
    before = state()
    assert [job.replay() for job in batch] == expected
    assert state() == before
    assert nbqueue.attach(batch.id)[2].replay() == expected[2]
    assert batch[1].replay(lambda x: x + 41) == 42
    assert batch.tally.finished == 3


def state():
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


async def later(x):
    return await nested(x)


async def nested(x):
    nbqueue.map(abs, [x])


def test_a_replay_is_a_job_and_raises_untouched(session, busy):
    batch = nbqueue.map(later, [1])
    batch.wait(10)
    with pytest.raises(InsideJob) as caught:
        batch[0].replay()
    assert caught.value.__cause__ is None
    named = nbqueue.submit("json.loads", "[1]")
    assert named.wait(10) == named.replay() == [1]
    there = nbqueue.attach(batch.id)
    batch.forget()
    with pytest.raises(BadInput, match="is no longer available"):
        there[0].replay()
    assert batch[0].replay(abs) == 1  # the arguments are still in memory
    lone = nbqueue.map(abs, [-1], inline="collect")
    assert lone[0].replay() == 1
    lone.ref.function = None
    with pytest.raises(BadInput, match=r"replay\(func=f\)"):
        lone[0].replay()
    assert session_module.current() is session
    assert "nbqueue" in sys.modules


def drawn(x):
    return random.random(), float(np.random.rand()), float(nbqueue.rng().random())  # noqa: NPY002


def test_inline_draws_what_workers_draw_and_gives_the_callers_numbers_back(session, fleet):
    expected = nbqueue.map(drawn, range(3), seed=11).results(timeout=20)
    before = state()
    assert nbqueue.map(drawn, range(3), seed=11, inline=True).results() == expected
    assert nbqueue.map(drawn, range(3), seed=11, inline="collect").results() == expected
    with pytest.raises(ZeroDivisionError):
        nbqueue.map(lambda x: random.random() / x, [0], inline=True)
    assert state() == before
    free = nbqueue.map(drawn, range(3), inline="collect")
    assert len(set(free.results())) == 3
    assert nbqueue.map(drawn, range(3), seed=free.seed, inline="collect").results() == free.results()


SCRIPT = """
import sys
import nbqueue
def draw(x):
    import numpy
    return numpy.random.rand()
print(*nbqueue.map(draw, [1, 2], seed=3, inline="collect").results())
import numpy
print(numpy.random.rand())
"""


def test_numpy_that_a_call_has_imported_goes_on_with_other_numbers(session):
    runs = [subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True) for _ in range(2)]
    assert [run.stderr for run in runs] == ["", ""]
    (jobs, own), (again, other) = [run.stdout.splitlines() for run in runs]
    assert jobs == again
    assert own != other  # the script's own numbers are nobody's
