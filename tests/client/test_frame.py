from __future__ import annotations

import collections
import dataclasses
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbqueue
from nbqueue.client.frames import columns, frame
from nbqueue.errors import CannotOpen


def collect(f, *items, **options):
    return nbqueue.map(f, *items, inline="collect", **options)


def echo(x):
    return x


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024 - the old kind is spread too


@dataclasses.dataclass
class Fit:
    slope: float
    name: str


def test_one_row_an_input_in_input_order(session, busy):
    def half(x, scale=1):
        return x / 2 * scale

    found = nbqueue.map(half, range(50)).to_frame(timeout=10)
    assert list(found.columns) == ["x", "result", "status", "error", "runtime_s", "job_id"]
    assert list(found["x"]) == list(range(50))
    assert list(found["result"]) == [x / 2 for x in range(50)]
    assert found.index.equals(pd.RangeIndex(50))


def test_meta_has_times_and_places_with_fixed_types(session, busy):
    batch = nbqueue.map(lambda x: 1 // x, [1, 0])
    found = batch.to_frame(meta=True, timeout=10)
    assert tuple(found.columns[-len(frame.META) :]) == frame.META
    assert list(found["cause"].fillna("")) == ["", "error"]
    assert found["error_type"][1] == "ZeroDivisionError"
    assert str(found["attempt"].dtype) == str(found["exit_code"].dtype) == "Int64"
    for name in ("queued_at", "started_at", "ended_at"):
        assert str(found[name].dtype) == "datetime64[us, UTC]"
    assert (found["started_at"] >= found["queued_at"]).all()
    assert found["max_rss_mb"][0] == 2.0
    assert (found["wait_s"] >= 0).all()


def test_an_attached_batch_shows_the_same_frame(session, busy):
    source = pd.DataFrame({"b": [1, 2], "a": ["x", "y"]}, index=pd.Index(["p", "q"], name="who"))
    batch = nbqueue.map(lambda a, b: a * b, source)
    first = batch.to_frame(timeout=10)
    assert list(first.index) == ["p", "q"]
    assert first.index.name == "who"
    assert list(first.columns[:3]) == ["a", "b", "result"]
    pd.testing.assert_frame_equal(nbqueue.attach(batch.id).to_frame(timeout=10), first)


def test_labels_of_several_levels_stay():
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["one", "two"])
    assert collect(echo, pd.Series([1, 2], index=index)).to_frame().index.equals(index)


def test_rows_that_are_not_done_are_shown_too(session, hands):
    batch = nbqueue.map(echo, [1, 2, 3])
    hands.work(1)
    next(batch.as_completed(timeout=10))
    found = batch.to_frame(wait=False)
    assert list(found["status"]) == ["finished", "queued", "queued"]
    assert str(found["result"].dtype) == "Int64"
    assert isinstance(found["status"].dtype, pd.CategoricalDtype)
    assert pd.concat([found, collect(echo, [4]).to_frame()])["status"].dtype == found["status"].dtype
    assert found["status"].value_counts()["queued"] == 2
    batch.cancel()


def test_integers_and_booleans_with_missing_rows():
    found = collect(lambda x: x or 1 // x, [1, 0, 3]).to_frame()
    assert str(found["result"].dtype) == "Int64"
    assert found["result"].isna().tolist() == [False, True, False]
    assert str(collect(lambda x: [True, None, False][x], range(3)).to_frame()["result"].dtype) == "boolean"
    assert str(collect(echo, [1, 2]).to_frame()["result"].dtype) == "int64"
    assert str(collect(echo, [True, False]).to_frame()["result"].dtype) == "bool"
    assert str(collect(echo, [np.int32(1), None]).to_frame()["result"].dtype) == "Int64"
    assert collect(echo, [1 << 70, 1]).to_frame()["result"][0] == 1 << 70


NOTHING = [None, columns.MISSING, pd.NA, pd.NaT, float("nan"), np.float32("nan"), np.float64("nan")]
WHOLE = st.integers(-(1 << 63), (1 << 63) - 1)
MAX_GROUPS = {
    "iu": WHOLE | WHOLE.map(np.int64) | st.integers(0, 255).map(np.uint8),
    "u": st.integers(1 << 63, (1 << 64) - 1),
    "b": st.booleans() | st.booleans().map(np.bool_),
    "f": st.floats(-1e300, 1e300) | st.floats(-1e300, 1e300).map(np.float64) | st.integers(-(1 << 53), 1 << 53),
}


@pytest.mark.parametrize("kind", MAX_GROUPS)
@given(st.data())
def test_a_column_of_numbers_stays_one_whatever_is_missing_and_no_value_changes(kind, data):
    if kind == "f":
        values = [0.5, *data.draw(st.lists(MAX_GROUPS[kind] | st.sampled_from(NOTHING)))]
    else:
        values = data.draw(st.lists(MAX_GROUPS[kind], min_size=1)) + data.draw(st.lists(st.sampled_from(NOTHING)))
    found = columns.column(data.draw(st.permutations(values)))
    assert found.dtype.kind in kind
    assert sorted(found.dropna()) == sorted(value for value in values if not columns.is_missing(value))
    frame = pd.DataFrame({"a": found, "b": found})
    assert list(frame.select_dtypes(["number", "bool", "boolean"])) == ["a", "b"]
    assert list(frame.mean(numeric_only=True).index) == ["a", "b"]


def test_text_and_times_beside_what_is_missing():
    day = pd.Timestamp("2026-01-02")
    for nothing in NOTHING:
        assert columns.column([nothing, day]).dtype.kind == "M"
        assert columns.column([nothing, day - day]).dtype.kind == "m"
        found = columns.column(["a", nothing, None])
        assert found.dtype == columns.text([None]).dtype
        assert found.tolist()[1] is found.tolist()[2] or found.isna().tolist() == [False, True, True]
    assert columns.column([(1 << 53) + 1, 0.5]).tolist() == [(1 << 53) + 1, 0.5], "not rounded"
    assert columns.column([float("nan"), None]).dtype.kind == "f"


def test_whole_numbers_or_nan_in_results_and_in_their_cells():
    def score(x):
        return x if x % 2 else float("nan")

    found = collect(score, range(4)).to_frame()["result"]
    assert found.mean() == 2
    assert found.isna().tolist() == [True, False, True, False]
    cells = collect(lambda x: {"a": score(x), "b": pd.NA if x else (1 << 64) - 1}, range(4)).to_frame()
    assert cells["a"].tolist()[1::2] == [1, 3]
    assert cells["b"].tolist()[0] == (1 << 64) - 1
    assert list(cells[["a", "b"]].mean(numeric_only=True).index) == ["a", "b"]


def test_text_of_ours_has_one_mark_for_what_is_missing():
    some, none = (collect(lambda x: 1 / x, items).to_frame(meta=True) for items in ([1, 0], [1, 2]))
    assert some.dtypes.astype(str).equals(none.dtypes.astype(str))
    for name in ("error", "error_type", "cause"):
        assert repr(some[name][0]) == repr(none[name][0])


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"a": 1, "b": 2}, ["a", "b"]),
        (Fit(1.0, "x"), ["slope", "name"]),
        (Pair(1, 2), ["left", "right"]),
        (pd.Series([1, 2], index=["u", 3]), ["u", "3"]),
        ([1, 2], ["result"]),
        ((1, 2), ["result"]),
        (np.arange(3), ["result"]),
        (pd.DataFrame({"a": [1]}), ["result"]),
        ({1: 2}, ["result"]),
        ({}, ["result"]),
        ({"a": {"deep": 1}}, ["a"]),
    ],
)
def test_what_spreads_and_what_stays_whole(value, names):
    found = collect(lambda n: value, [1, 2]).to_frame()
    assert list(found.columns[1:-4]) == names


def test_keys_that_are_taken_are_prefixed():
    def f(x, status, arg_status):
        return {"x": 1, "error": 2, "fine": 3, "host": 4}

    found = nbqueue.options(inline="collect").starmap(f, [(1, 2, 3)]).to_frame(meta=True)
    assert list(found.columns[:7]) == ["x", "arg_status", "arg_arg_status", "res_x", "res_error", "fine", "res_host"]
    assert found["arg_status"][0] == 2
    assert found.columns.is_unique


def test_mixed_results_keep_single_values():
    found = collect(lambda x: {"a": x} if x else 7, [1, 0]).to_frame()
    assert found["result"].tolist()[1] == 7
    assert found["a"].isna().tolist() == [False, True]


def test_very_wide_results_stay_objects():
    assert "result" in collect(lambda x: {str(n): n for n in range(1001)}, [1]).to_frame()


def test_large_arguments_are_summarised_unless_asked_for():
    batch = collect(lambda x: 0, ["ab" * 1000, np.zeros((40, 5)), list(range(2000)), "short"])
    shown = batch.to_frame()["x"].tolist()
    assert shown[0].endswith("(2,000 characters)")
    assert shown[1].startswith("<ndarray 40 x 5, 1.")
    assert shown[2].startswith("<list 2,000 items")
    assert shown[3] == "short"
    assert batch.to_frame(args=True)["x"][0] == "ab" * 1000


def test_a_result_that_cannot_be_opened_costs_one_cell():
    batch = collect(lambda x: x, [1, 2])
    import msgspec

    outcomes = batch.ref.state.outcomes
    outcomes.put(0, msgspec.structs.replace(outcomes.unsealed(0), value=b"garbage"))
    found = batch.to_frame()
    assert "cannot be unpickled here" in found["result"][0]
    assert found["result"][1] == 2
    with pytest.raises(CannotOpen, match="UnpicklingError"):
        batch[0].wait()


def test_a_result_whose_class_is_missing_here_costs_one_cell(tmp_path, monkeypatch):
    (tmp_path / "shapes.py").write_text("class Disk:\n    pass\n\ndef make(x):\n    return Disk() if x else 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    batch = nbqueue.map("shapes.make", [0, 1], inline="collect")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "shapes")
    found = batch.to_frame()["result"]
    assert found[0] == 0
    assert "cannot be unpickled here: ModuleNotFoundError: No module named 'shapes'" in found[1]


class Touchy(dict):
    def __iter__(self):
        raise RuntimeError("not me")


def test_no_result_makes_a_frame_raise():
    found = collect(lambda x: Touchy(a=1) if x else pd.Series([1, 2], index=[1, "1"]), [1, 0]).to_frame()
    assert isinstance(found["result"][0], Touchy)
    assert found["result"][1].tolist() == [1, 2]


def test_html_in_names_and_labels_is_shown_as_text():
    bad = "<script>alert(1)</script>"
    items = pd.Series([1], index=pd.Index([bad + "label"], name=bad + "index"))
    shown = collect(lambda x: {bad + "key": bad + "value"}, items).to_frame(meta=True)._repr_html_()
    assert "<script>" not in shown
    assert all(f"&lt;/script&gt;{word}" in shown for word in ("label", "index", "key", "value"))


# ---------------------------------------------------------------- concat


def test_frames_are_stacked_with_the_arguments_beside_them():
    def table(x, tag="t"):
        return pd.DataFrame({"x": [x, -x], "y": list("ab")}, index=pd.Index(["p", "q"], name="place"))

    items = pd.DataFrame({"x": [1, 2], "tag": ["u", "v"]}, index=pd.Index(["one", "two"], name="who"))
    found = collect(table, items).concat()
    assert list(found.columns) == ["x", "tag", "res_x", "y"]
    assert found.index.names == ["who", "place"]
    assert found.loc["two"].to_dict("list") == {"x": [2, 2], "tag": ["v", "v"], "res_x": [2, -2], "y": ["a", "b"]}
    assert found.index.tolist()[1] == ("one", "q")


def test_series_are_stacked_and_what_has_no_result_is_left_out():
    batch = collect(lambda x: pd.Series([1 / x, x], name="half" if x == 2 else None), [2, 0, [3], 2])
    with pytest.warns(UserWarning, match="2 of 4 jobs .* have no result"):
        found = batch.concat()
    assert list(found.columns) == ["x", "half"]
    assert found.index.tolist() == [(0, 0), (0, 1), (3, 0), (3, 1)]
    assert found["x"].tolist() == [2, 2, 2, 2]
    with pytest.warns(UserWarning, match="1 of 1"):
        assert list(collect(lambda x: 1 / x, [0]).concat().columns) == ["x"]


def test_columns_of_two_levels_keep_their_names():
    def stats(x):
        return pd.DataFrame([[x, -x]], columns=pd.MultiIndex.from_product([["mean"], ["x", "y"]]))

    found = collect(stats, [1, 2]).concat()
    assert list(found.columns) == ["x", ("mean", "x"), ("mean", "y")]
    assert found["mean", "y"].tolist() == [-1, -2]
    both = collect(lambda x: stats(x) if x else pd.DataFrame({"x": [5], "z": [6]}), [1, 0]).concat()
    assert list(both.columns) == ["x", ("mean", "x"), ("mean", "y"), "res_x", "z"]


def test_a_prefix_is_given_once_and_to_no_name_that_is_there():
    frames = [pd.DataFrame({"x": [1], "res_x": [2]}), pd.DataFrame({"x": [3]})]
    found = collect(lambda x: frames[x], [0, 1]).concat()
    assert list(found.columns) == ["x", "res_res_x", "res_x"]
    assert found["res_res_x"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("index", "outer"),
    [
        (pd.MultiIndex.from_tuples([("a", None), ("a", "b")], names=["k", "l"]), ["k", "l"]),
        (pd.MultiIndex.from_tuples([(np.nan, 1.5), ("a", np.nan)]), [None, None]),
        (pd.Index([(1, 2), (3, 4)], tupleize_cols=False, name="pair"), ["pair"]),
        (pd.Index(["a", None]), [None]),
        (pd.DatetimeIndex(["2026-01-01", None], name="day"), ["day"]),
        (pd.Index(["same", "same"]), [None]),
    ],
)
def test_labels_of_every_kind_become_the_outer_levels(index, outer):
    found = collect(lambda x: pd.DataFrame({"v": [x, x]}), pd.Series([1, 2], index=index)).concat()
    assert found["v"].tolist() == [1, 1, 2, 2]
    assert found.index.names == [*outer, None]
    expected = [label for label in index for _ in range(2)]
    for place in range(len(outer)):
        given = [label[place] if len(outer) > 1 else label for label in expected]
        there = found.index.get_level_values(place).tolist()
        assert all(one == other or (pd.isna(one) and pd.isna(other)) for one, other in zip(there, given, strict=True))


def test_results_of_unlike_depth_are_stacked():
    deep = pd.DataFrame({"v": [1]}, index=pd.MultiIndex.from_tuples([("u", 2)], names=["a", "b"]))
    flat = pd.DataFrame({"v": [3]}, index=pd.Index(["w"], name="a"))
    found = collect(lambda x: [deep, flat][x], [0, 1]).concat()
    assert found.index.names == [None, "a", "b"]
    assert found.index.get_level_values("a").tolist() == ["u", "w"]
    assert found.index.get_level_values("b").isna().tolist() == [False, True]
    doubled = pd.DataFrame([[1, 2]], columns=["v", "v"])
    with pytest.raises(nbqueue.NbqueueError, match="cannot be concatenated"):
        collect(lambda x: [doubled, flat][x], [0, 1]).concat()


def test_arguments_that_are_tables_are_not_put_beside_each_row():
    parts = [pd.DataFrame({"v": range(n)}) for n in (2, 500)]
    batch = nbqueue.map(lambda part, word: part * 2, parts, ["a", "b"], inline="collect")
    assert list(batch.concat().columns) == ["word", "v"]
    assert batch.concat(args=True)["part"].iloc[-1].equals(parts[1])
    long = collect(lambda x: pd.DataFrame({"v": [1]}), ["short", "long" * 500])
    assert list(long.concat().columns) == ["v"]


def test_a_result_that_is_none_adds_no_row_as_in_pandas():
    batch = collect(lambda x: pd.DataFrame({"v": [x, x]}) if x % 2 else None, range(4))
    with warnings.catch_warnings(action="error"):
        found = batch.concat()
    assert found["v"].tolist() == [1, 1, 3, 3]
    assert found["x"].tolist() == [1, 1, 3, 3]
    assert found.index.get_level_values(0).tolist() == [1, 1, 3, 3]
    with pytest.raises(nbqueue.NbqueueError, match="NoneType"):  # a `return` was forgotten, more likely
        collect(lambda x: None, [1]).concat()


def test_what_cannot_be_stacked_is_named(session):
    with pytest.raises(nbqueue.NbqueueError, match=r":1 is of type int.*to_frame\(\)"):
        collect(lambda x: pd.DataFrame({"a": [1]}) if x else 7, [1, 0]).concat()
    batch = nbqueue.map(echo, [1])
    with pytest.raises(nbqueue.NotDone):
        batch.concat(timeout=0)
    batch.cancel()


def test_rows_of_starmap_with_other_arguments_share_columns():
    def f(x, y=1, *more, **named):
        return x

    found = nbqueue.options(inline="collect").starmap(f, [(1,), (1, 2, 3), {"x": 4, "z": 5}]).to_frame()
    assert list(found.columns[:4]) == ["x", "y", "arg_2", "z"]
    assert found["z"].tolist()[2] == 5


def test_columns_of_an_odd_mixture():
    assert columns.column([1, "a"]).tolist() == [1, "a"]
    assert columns.column([columns.MISSING, [1, 2]]).tolist() == [None, [1, 2]]
    assert columns.column([]).tolist() == []
    assert columns.column([None, None]).isna().all()
    assert str(columns.column([1.5, None]).dtype) == "float64"


def test_the_table_of_failed_jobs_escapes_what_users_wrote():
    def bad(x):
        raise ValueError(f"<script>alert({x})</script>")

    batch = collect(bad, range(30))
    assert len(batch.failed) == 30
    html = batch.failed._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "and 10 more" in repr(batch.failed)
    assert len(batch.failed[:2]) == 2
    assert batch.failed[3].index == 3
