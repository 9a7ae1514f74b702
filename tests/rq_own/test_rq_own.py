"""RQ's own tests, with their imports renamed: those that pass are listed, and those that do not have their reason.

A listed one that fails is a loss. One that begins to pass is moved from `reasons.toml` to `passes.txt`: the list grows.
`python tests/rq_own/adapt.py` shows how each ends.
"""

import tomllib
from collections import Counter

import adapt
import pytest

PASSES = (adapt.HERE / "passes.txt").read_text().split()
GROUPS = tomllib.loads((adapt.HERE / "reasons.toml").read_text())["reason"]
CLASSES = (
    "internals",  # it looks into what only RQ has: its keys, its loop, functions that it replaces
    "on purpose",  # we do otherwise, and docs/coming-from-rq.md or the message of an error says so
    "missing",  # we have not what it asks for
    "not yet",  # we shall have it
    "either way",  # it may pass or not, and says nothing: an error that comes for another reason, a race with a clock
)
RUN = [group for group in GROUPS if group["class"] != "internals"]  # the others cannot pass, or not for a good reason
REASONS = {each: group for group in GROUPS for each in group["tests"]}


def path(each):
    name, _, rest = each.partition("::")
    return f"tests/test_{name}.py::{rest}"


def test_each_has_one_place():
    counted = Counter([*PASSES, *(each for group in GROUPS for each in group["tests"])])
    assert [each for each, count in counted.items() if count > 1] == []
    assert sorted(PASSES) == PASSES
    for group in GROUPS:
        assert group["class"] in CLASSES
        assert group["why"]


@pytest.mark.e2e
def test_what_passes_goes_on_to_pass(tmp_path):
    archive, why = adapt.sdist(tmp_path)
    if archive is None:
        pytest.skip(f"the sdist of {adapt.RELEASE} cannot be had: {why}")
    adapt.adapt(archive, tmp_path)
    known = adapt.collected(tmp_path)
    assert sorted(known - set(PASSES) - REASONS.keys()) == [], "write the reason of each of these into reasons.toml"
    assert sorted({*PASSES, *REASONS} - known) == [], "RQ has no such tests"
    ids = [*PASSES, *(each for group in RUN for each in group["tests"])]
    found, log = adapt.run(tmp_path, [path(each) for each in ids])
    assert found, log
    lost = {each: found[each]["text"] if each in found else log for each in PASSES if not passed(found, each)}
    # A test with a limit of its own may fail on a busy machine: once more, alone, before it counts.
    again, _ = adapt.run(tmp_path, [path(each) for each in lost], processes=1) if lost else ({}, "")
    lost = {each: text for each, text in lost.items() if not passed(again, each)}
    assert lost == {}, "\n".join(f"{each} passed before\n{text}" for each, text in lost.items())
    won = sorted(each for each in found if passed(found, each) and each not in PASSES)
    won = [each for each in won if REASONS[each]["class"] != "either way"]
    assert won == [], "these pass now: move them from reasons.toml to passes.txt"


def passed(found, each):
    return each in found and found[each]["outcome"] == "passed"
