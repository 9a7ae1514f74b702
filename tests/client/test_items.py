from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest

import nbqueue
from nbqueue import perform
from nbqueue.client.calls import items
from nbqueue.client.calls.function import describe
from nbqueue.errors import BadItems, NotPicklable, TooLarge


def one(x):
    return x


def two(x, y=1):
    return x, y


def plain(lr, seed, **rest):
    return lr, seed, rest


def calls(rows):
    return [(args, kwargs) for args, kwargs, _ in rows]


def mapped(f, *given):
    return items.calls_from_map(describe(f), given)


@pytest.mark.parametrize("given", [[1, 2, 3], (1, 2, 3), range(1, 4), np.array([1, 2, 3]), pd.Index([1, 2, 3])])
def test_a_sized_input_gives_one_positional_argument_an_item(given):
    found = mapped(one, given)
    assert found.n == 3
    assert [args[0] for args, _ in calls(found.rows)] == [1, 2, 3]


def test_tuples_and_dicts_are_not_spread_by_map():
    assert calls(mapped(one, [(1, 2), {"a": 1}]).rows) == [(((1, 2),), {}), (({"a": 1},), {})]


def test_several_iterables_are_zipped_strictly():
    assert calls(mapped(two, [1, 2], ["ab"] * 2).rows) == [((1, "ab"), {}), ((2, "ab"), {})]
    with pytest.raises(BadItems, match="different lengths: 2, 3"):
        mapped(two, [1, 2], [1, 2, 3])
    with pytest.raises(BadItems, match="different lengths"):
        list(mapped(two, [1, 2], iter([1])).rows)


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        ("abc", r"\['abc'\]"),
        (b"abc", r"\[b'abc'\]"),
        ({"a": 1}, "d.items"),
        ({1, 2}, "sorted"),
        (frozenset({1}), "sorted"),
        (17, "submit"),
        (None, "submit"),
        (np.array(3), "submit"),
    ],
)
def test_what_cannot_be_items_is_refused_with_the_way_out(given, way_out):
    with pytest.raises(TypeError, match=way_out):
        mapped(one, given)


def test_no_items_at_all_is_refused():
    with pytest.raises(BadItems, match=r"map\(one, items\)"):
        mapped(one)


def test_views_of_a_dict_have_an_order():
    assert [args for args, _ in calls(mapped(one, {"a": 1}.keys()).rows)] == [("a",)]


def test_a_series_keeps_its_labels_and_a_plain_index_costs_nothing():
    found = mapped(one, pd.Series([10, 20], index=["a", "b"]).rename_axis("who"))
    assert found.labeled
    assert found.index_names == ("who",)
    assert [(args[0], label) for args, _, label in found.rows] == [(10, "a"), (20, "b")]
    assert not mapped(one, pd.Series([10, 20])).labeled


def test_rows_of_a_frame_are_keywords_with_their_own_types():
    frame = pd.DataFrame({"seed": [1, 2], "lr": [0.5, 1.0]})
    found = mapped(plain, frame)
    assert found.columns == ("lr", "seed")
    rows = calls(found.rows)
    assert rows == [((), {"seed": 1, "lr": 0.5}), ((), {"seed": 2, "lr": 1.0})]
    assert type(rows[0][1]["seed"]) is int


def test_columns_that_the_function_does_not_take_are_listed():
    with pytest.raises(BadItems, match=r"'b', 'c'.*df\[\['x'\]\]"):
        mapped(two, pd.DataFrame({"x": [1], "b": [1], "c": [1]}))


@pytest.mark.parametrize("frame", [pd.DataFrame([[1, 2]]), pd.DataFrame([[1, 2]], columns=["x", "x"])])
def test_columns_that_are_no_keywords_are_refused(frame):
    with pytest.raises(BadItems, match="column"):
        mapped(two, frame)


def test_a_frame_stands_alone():
    with pytest.raises(BadItems, match="must be the only iterable"):
        mapped(two, pd.DataFrame({"x": [1]}), [1])


def test_starmap_spreads_tuples_and_dicts():
    found = items.calls_from_starmap(describe(two), [(1, 2), {"x": 3}, [4]])
    assert calls(found.rows) == [((1, 2), {}), ((), {"x": 3}), ((4,), {})]
    with pytest.raises(BadItems, match="Item 0 is 5"):
        list(items.calls_from_starmap(describe(two), [5]).rows)
    with pytest.raises(BadItems, match="keywords must be strings"):
        list(items.calls_from_starmap(describe(two), [{1: 2}]).rows)


def test_the_last_keyword_of_a_grid_is_fastest_and_other_values_are_constant():
    axes = {"lr": [0.1, 0.2], "seed": range(2), "name": "abc", "where": {"a": 1}}
    found = items.calls_from_grid(describe(plain), axes)
    assert found.n == 4
    rows = [kwargs for _, kwargs in calls(found.rows)]
    assert [(row["lr"], row["seed"]) for row in rows] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert all(row["name"] == "abc" and row["where"] == {"a": 1} for row in rows)


def test_axes_are_lists_tuples_ranges_arrays_and_series():
    axes = {"a": [1, 2], "b": (1, 2), "c": range(2), "d": np.arange(2), "e": pd.Series([1, 2])}
    assert items.calls_from_grid(describe(lambda **k: k), axes).n == 32
    assert items.calls_from_grid(describe(lambda a: a), {"a": []}).n == 0


def packed(f, *given):
    function = describe(f)
    return list(items.payloads(function, items.calls_from_map(function, given)))


def test_the_first_item_is_bound_before_anything_is_read_further():
    read = []

    def source():
        for number in range(10):
            read.append(number)
            yield number

    with pytest.raises(BadItems, match="cannot take the first item: missing a required argument: 'b'"):
        packed(lambda a, b: a, source())
    assert read == [0]


def test_a_tuple_that_does_not_bind_hints_at_starmap():
    with pytest.raises(BadItems, match="starmap"):
        packed(lambda a, b: a, [(1, 2)])


def test_an_argument_that_does_not_pickle_is_named_with_item_and_cause():
    with pytest.raises(NotPicklable, match=r"Item 1 of two \(argument 'y'\).*lock"):
        packed(two, [1, 2], [1, threading.Lock()])


class Hostile:
    def __reduce__(self):
        raise SystemError("no")

    def __repr__(self):
        return "<img src=x>"


def test_a_hostile_argument_is_named_too():
    with pytest.raises(NotPicklable, match=r"Item 0 of one.*SystemError: no"):
        packed(one, [Hostile()])


def test_an_argument_that_is_too_large_names_its_item():
    with pytest.raises(TooLarge, match="Item 1 of one is too large: over 64 MB"):
        packed(one, [1, bytes(70 << 20)])


def test_an_argument_over_one_megabyte_warns_once():
    with pytest.warns(UserWarning, match="Item 1 of one is 2.0 MB") as seen:
        packed(one, [1, bytes(2 << 20), bytes(2 << 20)])
    assert len(seen) == 1


def test_payloads_open_as_they_were_packed():
    labeled = packed(one, pd.Series([1], index=["a"]))
    assert perform.unpack(labeled[0]) == ((1,), {}, "a")
    assert [perform.unpack(p)[0] for p in packed(one, [1, "x", None])] == [(1,), ("x",), (None,)]


def test_a_series_beside_an_iterator_keeps_its_index():
    numbers = pd.Series([1, 2, 3], index=["a", "b", "c"])
    batch = nbqueue.map(lambda x, y: x + y, numbers, iter([10, 20, 30]), inline="collect")
    assert batch.to_frame()["result"].to_dict() == {"a": 11, "b": 22, "c": 33}
    with pytest.raises(BadItems, match="different lengths"):
        nbqueue.map(lambda x, y: x + y, numbers, iter([10]), inline="collect")


def test_an_error_of_the_users_iterator_is_not_taken_for_ours():
    def broken():
        yield 1
        raise ValueError("zip() argument 2 is shorter than argument 1, or so it says")

    with pytest.raises(ValueError, match="or so it says") as why:
        nbqueue.map(lambda x, y: x + y, [1, 2], broken(), inline="collect")
    assert not isinstance(why.value, BadItems)
