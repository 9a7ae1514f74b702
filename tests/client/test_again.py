"""`name=`: the same call finds its batch, new arguments run alone, and what has changed in the function is told."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from helpers import wait_until

import nbqueue
from nbqueue.client.batch import Batch
from nbqueue.client.session import session as sessions
from nbqueue.client.submit import reattach
from nbqueue.errors import BadInput, BadOption, BatchFailed, Changed

TEXT = """
def helper(x):
    return x + 1
class Net:
    weight = 3
    def run(self, x):
        return x * self.weight
def f(x, k=2):
    y = x * 3 + MODEL["bias"]
    return Net().run(y) + helper(k)
"""


def square(x):
    return x * x


def inverse(x):
    return 1 / x


def defined(text=TEXT, **names):
    """The function `f` of a notebook's cell with this text, as a new kernel defines it."""
    space = {"__name__": "__main__", "MODEL": {"bias": 5}} | names
    exec(text, space)
    return space["f"]


def indexes(batch):
    return [job.index for job in batch]


def test_the_same_call_finds_its_batch_and_nothing_runs(session, hands):
    one = nbqueue.map(square, [1, 2, 3], name="words")
    assert nbqueue.map(square, [1, 2, 3], name="words").id == one.id
    assert hands.work() == 3
    two = nbqueue.map(square, [1, 2, 3], name="words")
    assert (two.id, two.seed, indexes(two)) == (one.id, one.seed, [0, 1, 2])
    assert two.ref.note == "3 of 3 jobs reused; nothing new runs"
    assert two.results(timeout=5) == one.results(timeout=5) == [1, 4, 9]
    assert hands.work() == 0
    assert list(nbqueue.batches()["n"]) == [3]


def test_only_new_arguments_run_and_the_batch_shows_this_call_in_its_order(session, hands):
    one = nbqueue.map(square, [1, 2, 3, 3], name="words")
    hands.work()
    two = nbqueue.map(square, [7, 3, 1, 8, 3, 3], name="words")
    assert indexes(two) == [4, 2, 0, 5, 3, 6]
    assert two.ref.note == "3 of 6 jobs reused; 3 are new"
    assert [job.id for job in two][1] == f"{one.id}:2"
    assert hands.work() == 3
    assert two.results(timeout=5) == [49, 9, 1, 64, 9, 9]
    frame = two.to_frame()
    assert list(frame["x"]) == [7, 3, 1, 8, 3, 3]
    assert list(frame["job_id"]) == [job.id for job in two]
    assert sorted(job.index for job in two.as_completed(5)) == sorted(indexes(two))
    assert one.results(timeout=5) == [1, 4, 9, 9]
    assert nbqueue.attach("words").results(timeout=5) == [1, 4, 9, 9, 49, 64, 9]


def test_a_part_of_a_batch_counts_cancels_and_retries_its_own_jobs(session, hands):
    nbqueue.map(inverse, [1, 0, 2, 4], name="part")
    part = nbqueue.map(inverse, [4, 0], name="part")
    assert (len(part), indexes(part)) == (2, [3, 1])
    assert hands.work(want=2) == 2  # the first two of the whole
    wait_until(lambda: part.tally.failed == 1 and part.tally.queued == 1)
    assert not part.done
    assert part.cancel() == 1
    part.wait(5)
    assert str(part.tally) == "1 failed, 1 canceled"
    assert [job.index for job in part.failed] == [1]
    with pytest.raises(BatchFailed, match="2 of 2"):
        part.results(timeout=5)
    assert part[0] in part
    assert nbqueue.attach("part")[2] not in part
    with pytest.raises(BadInput, match="not among"):
        part.retry(nbqueue.attach("part")[2].id)
    hands.work()
    part.retry([0])
    assert hands.work() == 1
    assert part.wait(5)
    assert [str(status) for status in part.to_frame()["status"]] == ["finished", "failed"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("x * 3", "x * 4", "line 9: 3 -> 4"),
        ("k=2", "k=5", "the default of `k`: 2 -> 5"),
        ("x + 1", "x + 7", "line 3 of helper: 1 -> 7"),
        ("weight = 3", "weight = 4", "the member `weight` of Net: 3 -> 4"),
        ("x * self.weight", "x / self.weight", "the code of Net.run changed in line 7"),
        ("    return Net", "    y = -y\n    return Net", "the code changed in line 10"),
        ("def f(x, k=2)", "g = len\ndef f(x, k=2)", ""),
        ("def f(x, k=2):", "def f(x, k=2):\n    'Says what it does.'\n\n    # and why", ""),
        ('x * 3 + MODEL["bias"]', '(\n        x * 3\n        + MODEL["bias"]\n    )', ""),
    ],
)
def test_what_has_changed_in_the_function_is_told(session, old, new, told):
    batch = nbqueue.map(defined(), [1, 2], name="model")
    assert old in TEXT
    changed = defined(TEXT.replace(old, new))
    if told:
        with pytest.raises(Changed) as why:
            nbqueue.map(changed, [1, 2], name="model")
        assert str(why.value) == (
            f"Batch 'model' exists, but the function changed ({told}). Nothing was submitted. fresh=True: run all "
            "jobs again (the old batch is renamed model@1). update=True: keep the old results, and run only the rest."
        )
    else:
        assert nbqueue.map(changed, [1, 2], name="model").id == batch.id
    batch.cancel()


def test_globals_seeds_and_other_functions_are_told_too(session):
    batch = nbqueue.map(defined(), [1], name="model", seed=5)
    said = []
    lock = threading.Lock
    for function, more in (
        (defined(MODEL={"bias": 6}), {}),
        (defined(), {"seed": 6}),
        (square, {}),
        (defined("def f(x):\n    return LOCK", LOCK=lock), {}),
    ):
        with pytest.raises(Changed) as why:
            nbqueue.map(function, [1], name="model", **more)
        said.append(why.value.facts["what"])
    assert said[0] == "the function changed (the global `MODEL`: {'bias': 5} -> {'bias': 6})"
    assert said[1] == "the seed changed: 5 -> 6"
    assert said[2] == "the function changed (it is another function)"
    assert said[3].startswith("the function changed (the code changed in line 1")
    assert nbqueue.map(defined(), [1], name="model").seed == 5
    assert [view.tally.n for view in session.broker.batches()] == [1]
    batch.cancel()


def test_update_keeps_what_finished_and_runs_the_others_anew(session, hands):
    old, new = defined("def f(x):\n    return 'old', 1 / x"), defined("def f(x):\n    return 'new', x")
    first = nbqueue.map(old, [1, 0, 2, 3], name="mend")
    hands.work(want=3)
    first.wait(0.2)
    seed = first.seed
    with pytest.raises(Changed):
        nbqueue.map(new, [1, 0, 2, 3, 9], name="mend")
    batch = nbqueue.map(new, [9, 3, 2, 1, 0], name="mend", update=True)
    assert (batch.id, batch.seed) == (first.id, seed)
    assert batch.ref.note == "kept 2 finished rows of the earlier function, running 3 with the new one"
    assert hands.work() == 3
    assert batch.results(timeout=5) == [("new", 9), ("new", 3), ("old", 0.5), ("old", 1.0), ("new", 0)]
    for meta in (False, True):
        code = list(batch.to_frame(meta=meta)["code"])
        assert code == [batch.code, batch.code, first.code, first.code, batch.code]
    assert first.code != batch.code
    assert nbqueue.map(new, [1], name="mend").results(timeout=5) == [("old", 1.0)]
    assert nbqueue.map(new, [1], name="mend", update=True).id == first.id
    assert nbqueue.map(new, [5], name="mend").ref.note.endswith("1 are new")
    assert hands.work() == 1
    assert nbqueue.attach("mend")[5].wait(5) == ("new", 5)


def test_update_with_nothing_to_run_says_so_and_changes_nothing(session, hands, capsys):
    old, new = defined("def f(x):\n    return 'old'"), defined("def f(x):\n    return 'new'")
    first = nbqueue.map(old, [1, 2], name="kept")
    hands.work()
    assert first.wait(5)
    assert "code" not in first.to_frame()
    others = nbqueue.map(old, [3], name="kept")
    batch = nbqueue.map(new, [1, 2], name="kept", update=True)
    assert batch.results(timeout=5) == ["old", "old"]
    told = "kept 2 finished rows of the earlier function; nothing new runs. fresh=True: run all jobs again"
    assert f"kept: {told}" in capsys.readouterr().err
    with pytest.raises(Changed):  # else they would pass for the new one's
        nbqueue.map(new, [1, 2], name="kept")
    assert hands.work() == 1
    assert others.results(timeout=5) == ["old"]


def test_a_frame_tells_which_function_made_each_row(session, hands):
    batch = nbqueue.map(inverse, [0, 1], name="mixed")
    hands.work()
    before = batch.code
    assert "code" not in batch.to_frame()
    assert list(batch.to_frame(meta=True)["code"]) == [before, before]
    batch.retry(func=square)
    hands.work()
    assert list(batch.to_frame()["code"]) == [batch.code, before]
    assert list(nbqueue.attach("mixed").to_frame()["code"]) == [batch.code, before]
    batch.retry([0, 1])
    hands.work()
    assert "code" not in batch.to_frame()


def test_a_retry_with_a_mended_function_is_remembered(session, hands):
    batch = nbqueue.map(inverse, [0, 1], name="mend")
    hands.work()
    batch.wait(5)
    batch.retry(func=square)
    hands.work()
    assert batch.wait(5)
    assert nbqueue.map(square, [0, 1], name="mend").results(timeout=5) == [0, 1.0]
    with pytest.raises(Changed):
        nbqueue.map(inverse, [0, 1], name="mend")


def test_another_function_waits_for_what_other_calls_have_added(session, hands):
    first = nbqueue.map(square, [1], name="mend")
    hands.work()
    assert first.wait(5)
    second = nbqueue.map(square, [2, 1], name="mend")
    part = nbqueue.map(square, [1], name="mend")
    assert part.wait(5)
    with pytest.raises(BadInput, match="still running"):
        part.retry([0], func=inverse)
    hands.work()
    assert second.results(timeout=5) == [4, 1]
    part.retry([0], func=inverse)
    hands.work()
    assert part.results(timeout=5) == [1.0]


def test_fresh_makes_a_new_batch_and_the_old_ones_stay(session, hands):
    made = [nbqueue.map(square, [1], name="run", fresh=bool(turn)) for turn in range(3)]
    assert len({batch.id for batch in made}) == 3
    found = [nbqueue.attach(name).id for name in ("run@1", "run@2", "run")]
    assert found == [batch.id for batch in made]
    hands.work()
    assert nbqueue.attach("run@1").results(timeout=5) == [1]
    for word in ({"fresh": True}, {"update": True}):
        with pytest.raises(BadOption, match="give name="):
            nbqueue.map(square, [1], **word)
    with pytest.raises(BadOption, match="one of them"):
        nbqueue.map(square, [1], name="run", fresh=True, update=True)


def test_two_sessions_at_the_same_moment_end_with_one_batch(session, hands, other):
    both = threading.Barrier(2)

    def submit(which):
        both.wait(5)
        call = nbqueue.client.submit.submission.SubmitPlan
        options = nbqueue.model.Options().replaced(name="race", progress=False)
        numbers = range(1500) if which is session else range(500, 2000)
        calls = nbqueue.client.calls.items.calls_from_map
        return Batch(reattach.submit(call(which, options, square, lambda function: calls(function, (numbers,)))))

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(submit, [session, other])
    assert one.id == two.id
    total = 0
    while done := hands.work():
        total += done
    assert total == 2000
    assert one.results(timeout=10) == [x * x for x in range(1500)]
    assert two.results(timeout=10) == [x * x for x in range(500, 2000)]
    sessions.use(session)


def test_an_upload_that_broke_off_is_completed_by_the_same_call(session, hands):
    def broken():
        yield from range(5)
        raise OSError("the disk is gone")

    cut = nbqueue.map(square, broken(), name="stream")
    wait_until(lambda: cut.ref.state.error is not None and not session.broker.view(cut.id).open)
    assert hands.work() == 5
    whole = nbqueue.map(square, iter(range(8)), name="stream")
    assert whole.id == cut.id
    assert hands.work() == 3
    assert whole.results(timeout=5) == [x * x for x in range(8)]


def test_what_cannot_be_compared_asks_and_is_never_reused(session, hands):
    class Odd:
        def __reduce_ex__(self, protocol):
            if protocol == 4:  # as our comparison asks; pickling asks for 5
                raise ValueError("not like this")
            return int, ()

    nbqueue.map(square, [1, Odd()], name="odd")
    assert hands.work() == 2
    with pytest.raises(Changed, match=r"item 1 cannot be compared \(Odd"):
        nbqueue.map(square, [1, Odd()], name="odd")
    again = nbqueue.map(square, [1, Odd()], name="odd", update=True)
    assert indexes(again) == [0, 2]
    assert hands.work() == 1
    assert again.results(timeout=5) == [1, 0]


def test_frames_grids_labels_and_keywords_are_found_again(session, hands):
    def power(x, y=2):
        return x**y

    table = pd.DataFrame({"x": [1, 2, 3], "y": [2.0, 3.0, 1.0]}, index=["a", "b", "c"])
    nbqueue.map(power, table, name="table")
    assert hands.work() == 3
    turned = nbqueue.map(power, table.iloc[::-1][["y", "x"]].rename(index=str.upper), name="table")
    frame = turned.to_frame()
    assert list(frame.index) == ["C", "B", "A"]
    assert list(frame["result"]) == [3.0, 8.0, 1.0]
    grid = nbqueue.options(name="grid").grid(power, x=[1, 2], y=range(2))
    hands.work()
    larger = nbqueue.options(name="grid").grid(power, x=[1, 2, 3], y=range(2))
    assert (larger.id, indexes(larger)) == (grid.id, [0, 1, 2, 3, 4, 5])
    assert hands.work() == 2
    assert larger.results(timeout=5) == [1, 1, 1, 2, 1, 3]


def test_a_single_job_is_found_and_asks_for_other_arguments(session, hands):
    job = nbqueue.options(name="one").submit(square, 3)
    assert hands.work() == 1
    assert nbqueue.options(name="one").submit(square, 3).wait(5) == 9
    with pytest.raises(Changed, match="the arguments of this single job"):
        nbqueue.options(name="one").submit(square, 4)
    with pytest.raises(Changed, match="is a single job of items"):
        nbqueue.map(square, [3], name="one")
    assert nbqueue.attach("one")[0].id == job.id


def test_what_follows_a_named_batch_is_found_again(session, hands):
    def submit(items, **more):
        return nbqueue.map(square, items, name="first").then(inverse, name="second", **more)

    one = submit([1, 2, 4])
    while hands.work():
        pass
    assert one.results(timeout=5) == [1.0, 0.25, 0.0625]
    two = submit([4, 1])
    assert (two.id, indexes(two)) == (one.id, [2, 0])
    assert two.results(timeout=5) == [0.0625, 1.0]
    assert hands.work() == 0
    assert list(two.to_frame()["result"]) == [0.0625, 1.0]
    with pytest.raises(Changed, match="on the results of"):
        nbqueue.map(inverse, [1], name="second")
    with pytest.raises(Changed, match="it is another function"):
        nbqueue.attach("first").then(lambda x: -x, name="second")
    assert submit([4, 1], fresh=True).id != one.id
    assert nbqueue.attach("second@1").id == one.id
    while hands.work():
        pass


def test_new_items_wait_for_the_end_of_an_upload_that_goes_on(session, hands, capsys):
    go_on = threading.Event()

    def slowly():
        yield from range(3)
        assert go_on.wait(20)
        yield 3

    first = nbqueue.map(square, slowly(), name="slow")
    wait_until(lambda: session.broker.view(first.id).n >= 2)
    assert indexes(nbqueue.map(square, [1, 0], name="slow")) == [1, 0]  # they are there: no reason to wait
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(nbqueue.map, square, [9, 3, 0], name="slow")
        wait_until(lambda: "still being uploaded" in capsys.readouterr().err)
        assert not later.done()
        go_on.set()
        second = later.result(20)
    assert indexes(second) == [4, 3, 0]
    assert hands.work() == 5
    assert second.results(timeout=5) == [81, 9, 0]
    assert first.wait(5)


# ------------------------------------------------------------ a handle acts on its own call's jobs only


def grown(ways, hands):
    """(a settled handle, the handle of a later call that added two jobs to its batch): `ways` makes the items."""
    first = nbqueue.map(inverse, ways([1, 0]), name="grown")
    wait_until(lambda: len(first) == 2 and not first.ref.state.open)
    hands.work()
    assert first.wait(5)
    return first, nbqueue.map(inverse, [1, 0, 2, 4], name="grown")


@pytest.mark.parametrize("ways", [list, iter])
def test_a_settled_handle_cancels_nothing_of_what_another_call_added(session, hands, ways):
    first, later = grown(ways, hands)
    assert (first.cancel(), len(first)) == (0, 2)
    assert hands.work() == 2
    assert later.results("skip", timeout=5) == [1, 0.5, 0.25]
    assert len(first) == 2
    assert first.results("skip", timeout=5) == [1]


@pytest.mark.parametrize("ways", [list, iter])
def test_a_settled_handle_changes_nothing_under_what_another_call_added(session, hands, ways):
    first, later = grown(ways, hands)
    for change in ({"func": square}, {"queue": "elsewhere"}):
        with pytest.raises(BadInput, match="still running"):
            first.retry(**change)
    hands.work()
    assert later.results("skip", timeout=5) == [1, 0.5, 0.25]


def test_a_handle_of_all_cancels_all_in_one_step_and_what_came_after_it_lives(session, hands):
    first = nbqueue.map(square, range(5), name="cut")
    assert first.cancel() == 5
    assert session.broker.view(first.id).cuts[0][:2] == (0, 5)
    assert first.wait(5)
    later = nbqueue.map(square, range(7), name="cut")
    assert first.cancel() == 0
    assert hands.work() == 2
    assert later.results("skip", timeout=5) == [25, 36]


def test_max_failed_of_one_call_cancels_its_own_jobs_only(session, hands):
    nbqueue.map(inverse, [0, 0, 1], name="most", max_failed=0).wait(0)
    later = nbqueue.map(inverse, [2, 4], name="most")
    assert hands.work(want=1) == 1
    wait_until(lambda: session.broker.view(later.id).tally.canceled == 2)
    hands.work()
    assert later.results(timeout=5) == [0.5, 0.25]


def test_who_waits_for_a_settled_part_hears_of_nothing_that_is_of_others(session, hands):
    first = nbqueue.map(inverse, [1, 0], name="still")
    hands.work()
    assert first.wait(5)
    later = nbqueue.map(inverse, [1, 0, 2, 4], name="still")
    hands.work()
    assert later.wait(5)
    before = first.ref.state.cursor.generation
    assert first.results("skip") == [1]
    assert first.ref.state.cursor.generation == before
    later.retry(func=square)
    hands.work()
    assert later.wait(5)
    assert first.wait(5)
    assert first.results() == [1, 0]  # what another handle has retried is heard of
