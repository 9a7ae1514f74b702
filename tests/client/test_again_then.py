"""`then(name=...)` a second time, and iterators under a name."""

import itertools

import pytest

import nbqueue
from nbqueue.client.submit import submission
from nbqueue.errors import BadItems, Changed


def square(x):
    return x * x


def half(x):
    if x % 2:
        raise ValueError(x)
    return x / 2


def twice(x):
    return x * 2


def work(hands):
    while hands.work():
        pass


def test_what_follows_keeps_what_finished_and_runs_the_rest_with_the_new_function(session, hands):
    first = nbqueue.map(square, [1, 2, 4], name="first")
    one = first.then(half, name="second")
    work(hands)
    assert one.wait(10)
    with pytest.raises(Changed, match="update=True"):
        first.then(twice, name="second")
    two = first.then(twice, name="second", update=True)
    assert (two.id, two.ref.note) == (
        one.id,
        "kept 2 finished rows of the earlier function, running 1 with the new one",
    )
    work(hands)
    assert two.results(timeout=10) == [2, 2.0, 8.0]
    assert first.then(twice, name="second").results(timeout=10) == [2, 2.0, 8.0]


def test_what_still_waits_for_its_source_runs_with_the_new_function_too(session, hands):
    first = nbqueue.map(square, [2, 4, 6, 1], name="first")
    one = first.then(half, name="second")
    hands.work(2)  # of the source: two jobs of the child could run by now, two wait
    two = first.then(twice, name="second", update=True)
    assert two.id == one.id
    work(hands)
    assert two.results(timeout=10) == [8, 32, 72, 2]


def test_an_iterator_without_an_end_is_refused_where_it_must_be_compared(session, hands, monkeypatch):
    monkeypatch.setattr(submission, "LONGEST", 50)
    assert nbqueue.map(square, iter(range(60)), name="long").wait(0.01) in {
        True,
        False,
    }  # a new one is sent as it comes
    work(hands)
    with pytest.raises(BadItems, match=r"over 50 items\) cannot be compared"):
        nbqueue.map(square, itertools.count(), name="long")
    assert len(nbqueue.map(square, list(range(60)), name="long")) == 60
    work(hands)
    assert nbqueue.map(square, iter([1, 2]), name="long").results(timeout=10) == [1, 4]
