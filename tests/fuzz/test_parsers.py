"""No bytes from outside make a parser raise what is not ours, take much memory, or unpickle before the signature."""

from __future__ import annotations

import contextlib
import random
import tracemalloc

import msgspec
import pytest
from fuzz.parsers import OURS, PARSERS
from hypothesis import given
from hypothesis import strategies as st

from nbqueue import wire

MOST = 8 << 20  # bytes of memory that a parser may take for an input of some kB
LENGTHS = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"]
PIECES = [*LENGTHS, b"\xff" * 8, b"\0" * 8, b"-1", b"9" * 30, b"\xc1", b"\xff\xfe", b"|", b"", b"\x91" * 3000, b"nan"]


@pytest.fixture(autouse=True)
def no_unpickling(monkeypatch):
    """Whoever unpickles is caught."""

    def tripped(*_args, **_kwargs):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(wire, "loads", tripped)


@st.composite
def mutated(draw, sample: bytes) -> bytes:
    """The sample with some bits flipped, pieces cut out, put in, moved or doubled."""
    data = bytearray(sample)
    for _ in range(draw(st.integers(1, 4))):
        first, second = (draw(st.integers(0, len(data))) for _ in range(2))
        low, high = sorted((first, second))
        change = draw(st.integers(0, 5))
        if change == 0 and data:
            data[low % len(data)] ^= 1 << draw(st.integers(0, 7))
        elif change == 1:
            del data[low:high]
        elif change == 2:
            data[low:low] = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=20)))
        elif change == 3:
            data = data[high:] + data[low:high] + data[:low]
        elif change == 4:
            data[high:high] = data[low:high]
        else:
            data = data[:low]
    return bytes(data)


def meets_only_ours(name: str, data: bytes) -> None:
    parser = PARSERS[name][0]
    with contextlib.suppress(OURS):
        parser(data)


@pytest.mark.parametrize("name", PARSERS)
def test_a_valid_sample_is_taken(name):
    PARSERS[name][0](PARSERS[name][1])


@pytest.mark.parametrize("name", PARSERS)
def test_any_bytes_meet_only_errors_of_ours(name):
    @given(st.one_of(st.binary(max_size=200), st.sampled_from(PIECES)))
    def check(data):
        meets_only_ours(name, data)

    check()


@pytest.mark.parametrize("name", PARSERS)
def test_a_changed_sample_meets_only_errors_of_ours(name):
    @given(mutated(PARSERS[name][1]))
    def check(data):
        meets_only_ours(name, data)

    check()


ODD = st.sampled_from([None, True, -1, 0, 2**31, 2**62, -(2**62), 1e308, float("nan"), "", "x" * 99, b"", b"y", [], {}])


@st.composite
def otherwise(draw, value):
    """The same plain data with some of its values replaced, dropped or doubled."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ODD)
    if isinstance(value, list):
        return [draw(otherwise(each)) for each in value for _ in range(draw(st.sampled_from([1, 1, 1, 1, 0, 2])))]
    if isinstance(value, dict):
        return {key: draw(otherwise(each)) for key, each in value.items() if draw(st.integers(0, 9))}
    return value


def plain(sample: bytes):
    """The data in a sample that is msgpack."""
    try:
        return msgspec.msgpack.decode(sample)
    except msgspec.MsgspecError:
        return None


@pytest.mark.parametrize(
    "name", [name for name, (_, sample) in PARSERS.items() if isinstance(plain(sample), list | dict)]
)
def test_other_values_in_a_record_meet_only_errors_of_ours(name):
    @given(otherwise(plain(PARSERS[name][1])))
    def check(value):
        meets_only_ours(name, msgspec.msgpack.encode(value))

    check()


@pytest.mark.parametrize("name", PARSERS)
def test_no_memory_is_taken_for_a_declared_length(name):
    sample = PARSERS[name][1]
    dice = random.Random(7)
    places = [0, len(sample), *(dice.randrange(len(sample) + 1) for _ in range(20))]
    tracemalloc.start()
    try:
        for place in places:
            for length in LENGTHS:
                meets_only_ours(name, sample[:place] + length + sample[place:])
                meets_only_ours(name, sample[:place] + length + sample[place + len(length) :])
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
