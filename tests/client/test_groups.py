import json
import time
from pathlib import Path

import pytest
from hands import Hands

import nbqueue
from nbqueue.client.panel.failures import GAP, VARIETY, FailureGroups, frame_of, normal, place_words
from nbqueue.client.state.batch_state import BatchState
from nbqueue.model import Cause, Failure, Outcome, Spec, State, Tally

N = 100_000


def line_of(frame):
    return f"line {frame[1]} of {frame[0].rpartition('/')[2]}"


def grouped(function, items):
    groups = FailureGroups(line_of)
    groups.add(nbqueue.map(function, items, inline="collect").ref)
    assert groups.update()
    return groups


def told(groups):
    return [(len(kind.members), kind.what) for kind in groups.groups()]


def by_key(x):
    if x == 1:
        raise KeyError("body")
    if x < 5:
        raise KeyError("title")
    return x


def test_failures_of_one_kind_are_one_group_with_the_users_line():
    groups = grouped(by_key, range(8))
    assert told(groups) == [(4, "KeyError: 'title'"), (1, "KeyError: 'body'")]
    assert groups.groups()[0].where == f"line {by_key.__code__.co_firstlineno + 4} of test_groups.py"
    assert len(groups) == 5


def numbered(x):
    raise ValueError(f"row {x} at {hex(x)} took {x / 7:.3f} s")


def test_numbers_in_a_message_make_no_other_kind():
    assert told(grouped(numbered, range(50))) == [(50, f"ValueError: row {GAP} at {GAP} took {GAP} s")]


def missing(x):
    return Path(f"/data/7/{x}.csv").read_text()


def test_numbers_that_all_share_stay():
    what = f"FileNotFoundError: [Errno 2] No such file or directory: '/data/7/{GAP}.csv'"
    assert told(grouped(missing, range(5))) == [(5, what)]


def worded(word):
    raise ValueError(f"could not convert {word!r} to float")


def test_many_messages_from_one_place_are_one_kind_by_what_they_share():
    words = ["apple", "berry", "cherry", "date", "elder", "fig", "grape"]
    few, many = grouped(worded, words[:VARIETY]), grouped(worded, words)
    assert len(few.groups()) == VARIETY
    assert told(many) == [(7, f"ValueError: could not convert '{GAP}' to float")]


def parsed(text):
    return json.loads(text)


def test_the_place_is_the_users_line_and_not_the_librarys():
    (kind,) = grouped(parsed, ["{"]).groups()
    assert kind.where.endswith("of test_groups.py")
    assert kind.what.startswith("json.decoder.JSONDecodeError: Expecting property name")


def test_a_retry_takes_failures_out_and_puts_others_in():
    batch = nbqueue.map(by_key, range(4), inline="collect")
    groups = FailureGroups(line_of)
    groups.add(batch.ref)
    groups.update()
    batch.retry(rows=[1, 2], func=lambda x: x)
    groups.update()
    assert told(groups) == [(2, "KeyError: 'title'")]
    batch.retry(func=numbered)
    groups.update()
    assert told(groups) == [(2, f"ValueError: row {GAP} at {GAP} took {GAP} s")]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("/tmp/ipykernel_1/2.py", "line 3 of this cell"),
        ("/tmp/ipykernel_1/1.py", "line 3 of cell [7]"),
        ("/tmp/ipykernel_9/9.py", "line 3 of a cell"),
        ("/home/anna/mylib.py", "line 3 of mylib.py"),
        ("C:\\Users\\anna\\mylib.py", "line 3 of mylib.py"),
    ],
)
def test_words_for_a_place(file, words):
    numbers = {"/tmp/ipykernel_1/1.py": 7, "/tmp/ipykernel_1/2.py": 12}
    assert place_words((file, 3), numbers.get, 12) == words


def test_frames_are_found_in_the_last_traceback():
    text = (
        'Traceback (most recent call last):\n  File "/a.py", line 1, in f\nKeyError: 1\n\nDuring handling:\n\n'
        'Traceback (most recent call last):\n  File "/b.py", line 2, in g\n'
        '  File "/usr/lib/python3.11/json/decoder.py", line 5, in h\nValueError: x\n'
    )
    assert frame_of(text) == ("/b.py", 2)
    assert frame_of("nothing of the kind") is None
    assert normal("id 5f3c2b1a-0000-4000-8000-1234567890ab took 1.5e-3") == f"id {GAP} took {GAP}"


def test_what_real_workers_settle_is_grouped_too(session):
    batch = nbqueue.map(by_key, range(8))
    hands = Hands(session)
    hands.start()
    assert batch.wait(20)
    hands.stop()
    groups = FailureGroups(line_of)
    groups.add(batch.ref)
    groups.update()
    assert told(groups) == [(4, "KeyError: 'title'"), (1, "KeyError: 'body'")]


def test_a_look_costs_what_is_new_and_not_what_there_is():
    batch = nbqueue.map(by_key, [0], inline="collect")
    batch.ref.state = BatchState("big", "default", "", Spec(label="f"))
    trace = 'Traceback (most recent call last):\n  File "/a.py", line 1, in f\nKeyError: 1\n'
    for index in range(N):
        failure = Failure("KeyError", f"row {index}", trace)
        outcome = Outcome(State.FAILED, Cause.ERROR, 1, 0, 0, failure=failure)
        batch.ref.state.put(index, outcome)
    batch.ref.state.tally = Tally(n=N, failed=N)
    groups = FailureGroups(line_of)
    groups.add(batch.ref)
    looks = 1
    while not groups.update():
        looks += 1
    assert looks >= N / 2_000
    assert told(groups) == [(N, f"KeyError: row {GAP}")]
    begun = time.thread_time()
    for _ in range(100):
        groups.update()
    assert time.thread_time() - begun < 0.3
