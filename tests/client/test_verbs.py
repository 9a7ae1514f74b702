from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import re
import threading

import numpy as np
import pandas as pd
import pytest
from hands import Hands
from IPython.core.interactiveshell import InteractiveShell

import nbqueue
from nbqueue import current
from nbqueue.client.calls import items
from nbqueue.client.session import session as session_module
from nbqueue.client.submit import retry
from nbqueue.errors import (
    BadInput,
    BadItems,
    BadName,
    BadOption,
    InsideJob,
    NbqueueError,
    NoBatchAtAll,
    NoServer,
    NoSuchBatch,
    NoSuchJob,
    NotPicklable,
)


def square(x):
    return x * x


def inverse(x):
    return 1 / x


def power(x, y):
    return x**y


def clash(x, timeout=None):
    return x, timeout


def fail(x):
    raise ValueError(x)


def test_an_unknown_keyword_names_both_ways_out(session):
    with pytest.raises(BadOption, match=r"no option 'scale'.*functools.partial.*nbqueue.options\(") as caught:
        nbqueue.map(square, [1], scale=3)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: nbqueue.map(square, [1], timout=3), r"Did you mean 'timeout'\?$"),
        (lambda: nbqueue.map(square, [1], sed=3), r"Did you mean 'seed'\?$"),
        (lambda: nbqueue.map(power, x=[1, 2], y=[3, 4]), r"map\(power, x, y\)\. .*grid\(power, x=\.\.\., y=\.\.\.\)"),
        (lambda: nbqueue.map(power, [1], y=3), r"functools.partial\(power, y=\.\.\.\)"),
        (lambda: nbqueue.grid(square, x=[1], progress=False), r"nbqueue\.options\(progress=False\)\.grid"),
        (lambda: nbqueue.submit(square, 1, timeout=3), r"nbqueue\.options\(timeout=3\)"),
    ],
)
def test_a_keyword_in_the_wrong_place_is_told_where_it_belongs(session, call, told):
    with pytest.raises(BadInput, match=told) as why:
        call()
    assert len(str(why.value)) < 600


def test_the_groups_of_a_frame_are_told_to_be_pairs(session, busy):
    groups = pd.DataFrame({"k": ["a", "b"], "v": [1, 2]}).groupby("k")
    with pytest.warns(UserWarning, match=r"pairs \(key, group\).*\[group for _, group in \.\.\.\].*starmap") as found:
        nbqueue.map(square, groups).cancel()
    assert found[0].filename == __file__
    assert nbqueue.starmap(lambda key, group: int(group.v.sum()), groups).results(timeout=10) == [1, 2]


def test_some_jobs_of_a_batch(session, busy):
    batch = nbqueue.map(square, range(5))
    assert batch[1:3].results(timeout=10) == [1, 4]
    assert batch[::-2].to_frame()["x"].tolist() == [4, 2, 0]
    assert batch[np.array([0, 3])].results() == batch[[0, -2]].results() == [0, 9]
    frame = batch.to_frame()
    assert batch[frame.result > 4].results() == batch[(frame.result > 4).to_numpy()].results() == [9, 16]
    assert batch[np.int64(2)].wait() == 4
    assert batch[[]].results() == []
    assert nbqueue.gather(batch[3:])["result"].tolist() == [9, 16]
    failed = nbqueue.map(inverse, [0, 1])
    with pytest.raises(ZeroDivisionError):
        failed[:1].results(timeout=10)
    assert failed[:2].results("skip") == [1.0]
    assert isinstance(failed[:2].results("return")[0], ZeroDivisionError)
    for index, kind in (
        ([True], IndexError),
        ([9], IndexError),
        ("a", TypeError),
        (1.5, TypeError),
        ([0.5], TypeError),
    ):
        with pytest.raises(kind):
            batch[index]


def test_a_batch_is_neither_sorted_nor_pickled(session, busy):
    batch = nbqueue.map(square, range(2))
    with pytest.raises(TypeError, match=r"key=lambda job: job\.result"):
        sorted(batch)
    for handle in (batch, batch[0]):
        with pytest.raises(NotPicklable, match=rf"nbqueue.attach\('{batch.id}'\)"):
            pickle.dumps(handle)


@pytest.mark.parametrize(
    ("code", "steps"),
    [
        ("nbqueue.map(f, [1], name='a/b')", 1),
        ("nbqueue.map(f, 'abc')", 1),
        ("nbqueue.grid(f, y=[1])", 1),
        ("nbqueue.connect('redis://127.0.0.1:1')", 1),
        ("nbqueue.map(f, [lock])", 1),
        ("(lambda: nbqueue.attach('none'))()", 2),
        ("nbqueue.map(f, [0], inline='collect').results()", 1),
    ],
)
def test_a_notebook_shows_the_users_own_lines_of_an_error_of_ours(session, code, steps):
    shell = InteractiveShell.instance()
    try:
        shell.run_cell("import nbqueue, threading; lock = threading.Lock()\ndef f(x): return 1 / x")
        with contextlib.redirect_stdout(io.StringIO()) as told:
            ran = shell.run_cell(code)
    finally:
        shell.history_manager.end_session()
        InteractiveShell.clear_instance()
    assert isinstance(ran.error_in_exec, NbqueueError)
    seen = re.sub(r"\x1b\[[0-9;]*m", "", told.getvalue())
    assert "/nbqueue/" not in seen
    assert seen.count("Cell In") == steps
    assert str(ran.error_in_exec) in seen
    assert len(seen.splitlines()) < (40 if "results()" in code else 20)
    assert "ZeroDivisionError" in seen or "results()" not in code  # what a job raised is shown as its cause


def test_warnings_point_at_the_line_of_the_user(session, busy):
    big, table = "x" * (2 << 20), bytes(11 << 20)
    for call in (
        lambda: nbqueue.map(square, [big]),
        lambda: nbqueue.submit(len, big),
        lambda: nbqueue.map(lambda x: len(table), [1]),
        lambda: nbqueue.map(lambda x: pd.Series([1 / x]), [0, 1]).concat(timeout=10),
        lambda: nbqueue.Queue("q").enqueue(len, big),
    ):
        with pytest.warns(UserWarning, match=r"MB|no result") as found:
            call()
        assert {each.filename for each in found} == {__file__}


def test_a_keyword_that_is_also_a_parameter_is_refused_with_both_ways_out(session, busy):
    with pytest.raises(BadOption, match=r"functools.partial\(clash, timeout=3\).*nbqueue.options\(timeout=3\).map"):
        nbqueue.map(clash, [1], timeout=3)
    assert nbqueue.options(timeout=3).map(clash, [1]).results(timeout=10) == [(1, None)]
    assert nbqueue.map(functools.partial(clash, timeout=3), [1]).results(timeout=10) == [(1, 3)]


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"result_ttl": -5},
        {"queue": "a\nb"},
        {"name": "<b>"},
        {"seed": -1},
        {"max_failed": -1},
        {"ttl": 0},
    ],
)
def test_options_that_cannot_be_meant_are_refused(session, options):
    with pytest.raises((BadOption, BadName)):
        nbqueue.map(square, [1], **options)
    assert session.broker.batches() == []


def test_options_are_immutable_and_have_every_verb(session, busy):
    slow = nbqueue.options(timeout="3m")
    assert repr(slow) == "nbqueue.options(timeout=180.0)"
    with pytest.raises(AttributeError):
        slow.timeout = 3
    assert slow.options(queue="q") is not slow
    assert slow.map(square, [2]).results(timeout=10) == [4]
    assert slow.starmap(square, [(2,), {"x": 3}]).results(timeout=10) == [4, 9]
    assert slow.grid(clash, x=[1, 2], timeout=range(2)).results(timeout=10) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert slow.submit(square, 5).wait(10) == 25
    assert slow.map(square, [2]).ref.spec.timeout == 180


def test_nothing_is_sent_for_bad_items(session):
    for given in ("abc", {1, 2}, [threading.Lock()], iter([threading.Lock()])):
        with pytest.raises((BadItems, NotPicklable)):
            nbqueue.map(square, given)
    with pytest.raises(BadItems):
        nbqueue.map(lambda a, b: 0, iter([1]))
    assert session.broker.batches() == []


def test_attach_finds_by_name_by_id_and_the_latest(session, busy):
    first = nbqueue.map(square, [1, 2], name="one")
    second = nbqueue.map(square, [3])
    assert nbqueue.attach("one").results(timeout=10) == [1, 4]
    assert nbqueue.attach(first.id).name == "one"
    assert nbqueue.attach(first[1].id) == first
    assert nbqueue.attach() == second
    with pytest.raises(NoSuchBatch, match="nothing"):
        nbqueue.attach("nothing")
    with pytest.raises(BadName):
        nbqueue.attach("<b>")


def test_batches_lists_all_the_latest_first(session):
    assert len(nbqueue.batches()) == 0
    with pytest.raises(NoSuchBatch):
        nbqueue.attach()
    made = [nbqueue.map(square, range(3), name="a"), nbqueue.map(square, [1])]
    found = nbqueue.batches()
    assert list(found["id"]) == [made[1].id, made[0].id]
    assert list(found["n"]) == [1, 3]
    assert list(found["function"]) == ["square", "square"]
    assert isinstance(found["created_at"].dtype, pd.DatetimeTZDtype)
    for batch in made:
        batch.cancel()


def test_a_seed_is_drawn_recorded_and_shown(session, busy):
    drawn = nbqueue.map(square, [1])
    assert 0 <= drawn.seed < 2**48
    assert nbqueue.attach(drawn.id).seed == drawn.seed
    assert nbqueue.map(square, [1], seed=7).seed == 7


@pytest.mark.parametrize("verb", ["map", "starmap", "grid", "submit", "connect", "attach", "batches", "local"])
def test_a_job_cannot_submit(session, verb):
    arguments = {"map": (square, [1]), "starmap": (square, [(1,)]), "grid": (square,), "submit": (square, 1)}
    with current.inside("x:1", None, 1), pytest.raises(InsideJob, match=f"nbqueue.{verb}"):
        getattr(nbqueue, verb)(*arguments.get(verb, ()))


def test_retry_runs_failed_rows_with_another_function_and_limits(session, busy):
    batch = nbqueue.map(fail, [1, 2])
    assert batch.wait(10)
    assert batch.retry().wait(10)
    assert batch.to_frame(meta=True)["attempt"].tolist() == [2, 2]
    batch.retry([1], func=square, timeout="5m")
    assert batch[1].wait(10) == 4
    assert batch.wait(10)
    assert batch.tally.failed == 1
    assert nbqueue.attach(batch.id).ref.spec.timeout == 300
    with pytest.raises(BadOption, match="retry"):
        batch.retry(name="x")


def test_rows_of_a_query_run_again_in_another_queue(session, busy):
    batch, lonely = nbqueue.map(fail, [1, 2, 3]), nbqueue.map(square, [1], queue="lonely")
    with pytest.raises(BadInput, match=r"retry\(queue=...\) needs a batch that has ended"):
        lonely.retry([], queue="big")
    assert batch.wait(10)
    big = Hands(session, ("big",)).start()
    rows = batch.to_frame().query("x > 1 and status == 'failed'")
    assert batch.retry(rows, func=square, queue="big", timeout=9).wait(10)
    assert batch.to_frame()["result"].fillna(0).tolist() == [0, 4, 9]
    assert (batch.queue, nbqueue.attach(batch.id).queue, batch.tally.failed) == ("big", "big", 1)
    assert {batch[index].worker_name for index in (1, 2)} == {big.id}
    batch.retry(batch.to_frame().iloc[0], func=square, queue="default")
    assert batch[0].wait(10) == 1
    big.stop()
    lonely.cancel()


def test_rows_to_retry_are_named_in_many_ways(session, busy):
    batch, other = nbqueue.map(square, range(4)), nbqueue.map(square, range(4))
    assert batch.wait(10)
    assert other.wait(10)
    frame = batch.to_frame()
    assert retry.chosen(batch.ref, frame[frame["x"] > 1]) == [2, 3]
    assert retry.chosen(batch.ref, [3, -4, batch[1], batch[1].id]) == [0, 1, 3]
    assert retry.chosen(batch.ref, None) == []
    assert retry.chosen(batch.ref, 2) == [2]
    for bad in (other.to_frame(), frame[["x"]], [4], ["x"], [True], [1.5], 3.5, [other[0]]):
        with pytest.raises(BadInput):
            batch.retry(bad)


def test_rows_that_still_run_cannot_be_retried(session):
    batch = nbqueue.map(square, [1])
    with pytest.raises(BadInput, match="has not ended"):
        batch.retry([0])
    batch.cancel()


def test_a_changed_function_is_pointed_out(session, busy, monkeypatch):
    space = {"__name__": "__main__"}
    exec("def f(x):\n    return 1 // x", space)
    old = space["f"]
    batch = nbqueue.map(old, [0])
    assert batch.wait(10)
    exec("def f(x):\n    return 0", space)
    monkeypatch.setattr("__main__.f", space["f"], raising=False)
    with pytest.warns(UserWarning, match=r"retry\(func=f\)"):
        batch.retry()
    assert batch.wait(10)


def test_a_batch_just_attached_is_retried_at_once(session, busy):
    batch = nbqueue.map(lambda x: 1 // x, [1, 0])
    assert batch.wait(10)
    assert [job.index for job in nbqueue.attach(batch.id).failed] == [1]
    assert nbqueue.attach(batch.id).retry().wait(10)
    assert [job.attempt for job in nbqueue.attach(batch.id)] == [1, 2]
    assert nbqueue.attach(batch.id).retry(func=square).results(timeout=10) == [1, 0]


# ---------------------------------------------------------------- inline


def test_inline_collect_needs_no_server():
    batch = nbqueue.map(lambda x: 1 // x, [1, 0], inline="collect")
    assert batch.done
    assert batch.to_frame()["status"].tolist() == ["finished", "failed"]
    assert isinstance(batch[1].exception(), ZeroDivisionError)
    assert batch.retry(func=square).results() == [1, 0]


def test_inline_lets_the_first_exception_through_untouched():
    marks = []

    def f(x):
        marks.append(x)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        nbqueue.map(f, [1, 2], inline=True)
    assert caught.value.__cause__ is None
    assert marks == [1]
    assert nbqueue.map(square, [2, 3], inline=True).results() == [4, 9]


def test_inline_pickles_arguments_and_results():
    source = [[1], [2]]
    batch = nbqueue.map(lambda x: x.append(9) or x, source, inline=True)
    assert batch.results() == [[1, 9], [2, 9]]
    assert source == [[1], [2]]
    frame = nbqueue.map(lambda x: threading.Lock(), [1], inline="collect").to_frame(meta=True)
    assert frame["cause"][0] == "unserializable"


def test_inline_by_environment_for_all_verbs(monkeypatch):
    monkeypatch.setenv("NBQUEUE_INLINE", "collect")
    monkeypatch.setattr(session_module, "_current", None)
    assert nbqueue.submit(square, 3).wait() == 9
    assert nbqueue.grid(square, x=[1, 2]).results() == [1, 4]
    assert nbqueue.map(square, iter([1, 2])).results() == [1, 4]
    assert nbqueue.map(fail, [1, 2, 3], max_failed=0).tally.canceled == 2


async def later(x):
    return x + 1


def test_inline_awaits_coroutines_also_inside_a_running_loop():
    import asyncio

    async def notebook(mode):
        return nbqueue.map(later, [1], inline=mode).results()

    assert nbqueue.map(later, [1], inline=True).results() == [2]
    for mode in (True, "collect"):
        assert asyncio.run(notebook(mode)) == [2]


# ---------------------------------------------------------------- connecting


def test_connect_says_at_once_what_is_wrong():
    with pytest.raises(NoServer):
        nbqueue.connect("redis://127.0.0.1:1")
    with pytest.raises(BadOption, match="must begin with redis://"):
        nbqueue.connect("http://x")
    with pytest.raises(BadInput, match=r"redis\.Redis"):
        nbqueue.connect(17)
    with pytest.raises(BadName):
        nbqueue.connect("redis://127.0.0.1:1", namespace="{x}")


def test_connect_takes_a_client_of_the_users(server, session):
    import redis

    client = redis.Redis.from_url(server.url, decode_responses=True)
    found = nbqueue.connect(client, namespace=session.settings.namespace)
    batch = nbqueue.map(square, [1])
    assert found.broker.view(batch.id) is not None
    batch.cancel()
    found.collector.stop()
    found.disconnect()
    client.close()


def test_a_forked_child_has_a_collector_and_sockets_of_its_own(session, hands):
    job = nbqueue.submit(square, 3)
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.write(theirs, session.id.encode())
            code = int(job.wait(5) != 9 or nbqueue.submit(square, 4).status != "queued")
        finally:
            os._exit(code)
    assert os.read(ours, 100).decode() != session.id
    assert hands.work() == 1
    assert os.waitpid(child, 0)[1] == 0
    assert job.wait(5) == 9
    assert hands.work() == 1
    os.close(ours)
    os.close(theirs)


def test_the_first_item_is_bound_for_streams_too(session):
    with pytest.raises(BadItems, match="cannot take the first item"):
        nbqueue.map(lambda: 0, (n for n in [1]))


def test_columns_are_fixed_by_the_signature(session):
    from nbqueue.client.calls.function import describe

    assert items.calls_from_map(describe(clash), ([],)).columns == ("x",)
    assert items.calls_from_map(describe(int), ([1],)).columns == ("arg_0",)


def test_what_is_not_there_is_said_with_the_way_out(session, hands):
    with pytest.raises(NoBatchAtAll, match="There is no batch of yours on"):
        nbqueue.attach()
    batch = nbqueue.map(square, [1, 2])
    with pytest.raises(IndexError, match=f"{batch.id} has 2 jobs: there is no 7"):
        batch[7]
    with pytest.raises(NoSuchJob, match=f"{batch.id} is a batch of 2 jobs, and {batch.id}:0 its first"):
        nbqueue.Job.fetch(batch.id)
    with pytest.raises(NoSuchJob, match=r"There is no job 'none:0' on \S+\.$"):
        nbqueue.Job.fetch("none:0")
