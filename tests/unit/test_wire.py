"""Signed bytes: what is moved, changed or cut is refused before it is opened; and the secret is kept as a secret."""

import io
import os
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbqueue import wire
from nbqueue.errors import BadSecret, BadSignature, TooLarge, UnknownKey


def sealer(secret=b"s" * 32, namespace="nbq", *more):
    return wire.Sealer(wire.Keyring([secret, *more], "here"), namespace)


def test_what_was_sealed_is_unsealed():
    blob = sealer().seal(wire.ARGUMENTS, "b1", 3, b"payload", 2)
    assert sealer().unseal(wire.ARGUMENTS, "b1", 3, blob, 2) == b"payload"
    assert wire.peek(blob) == b"payload"


def test_many_are_sealed_as_one_is():
    one = sealer()
    assert one.seal_all(wire.ARGUMENTS, "b1", 5, [b"x", b"y"]) == [
        one.seal(wire.ARGUMENTS, "b1", 5, b"x"),
        one.seal(wire.ARGUMENTS, "b1", 6, b"y"),
    ]


@pytest.mark.parametrize(
    ("place", "namespace"),
    [
        ((wire.OUTCOME, "b1", 3, 2), "nbq"),
        ((wire.ARGUMENTS, "b2", 3, 2), "nbq"),
        ((wire.ARGUMENTS, "b1", 4, 2), "nbq"),
        ((wire.ARGUMENTS, "b1", -1, 2), "nbq"),
        ((wire.ARGUMENTS, "b1", 3, 1), "nbq"),
        ((wire.ARGUMENTS, "b1", 3, 2), "other"),
    ],
    ids=["kind", "batch", "index", "whole", "attempt", "namespace"],
)
def test_bytes_moved_to_another_place_are_refused(place, namespace):
    blob = sealer().seal(wire.ARGUMENTS, "b1", 3, b"payload", 2)
    kind, batch, index, attempt = place
    with pytest.raises(BadSignature):
        sealer(namespace=namespace).unseal(kind, batch, index, blob, attempt)


def test_names_that_run_together_are_told_apart():
    blob = wire.Sealer(wire.Keyring([b"s" * 32], "here"), "ab").seal(wire.META, "c", 0, b"")
    with pytest.raises(BadSignature):
        wire.Sealer(wire.Keyring([b"s" * 32], "here"), "a").unseal(wire.META, "bc", 0, blob)


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_as_ours(blob):
    with pytest.raises(BadSignature):
        sealer().unseal(wire.ARGUMENTS, "b1", 0, blob)


@given(st.data())
def test_a_flipped_bit_or_a_lost_end_is_noticed(data):
    blob = sealer().seal(wire.ARGUMENTS, "b1", 0, b"a payload of some length")
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(blob) * 8 - 1))
        changed = bytearray(blob)
        changed[place // 8] ^= 1 << place % 8
        changed = bytes(changed)
    else:
        changed = blob[: data.draw(st.integers(0, len(blob) - 1))]
    with pytest.raises(BadSignature):
        sealer().unseal(wire.ARGUMENTS, "b1", 0, changed)


def test_keys_rotate():
    old, new = b"o" * 32, b"n" * 32
    blob = sealer(old).seal(wire.META, "b", 0, b"x")
    both = sealer(new, "nbq", old)
    assert both.unseal(wire.META, "b", 0, blob) == b"x"
    with pytest.raises(UnknownKey, match="one more line"):
        sealer(new).unseal(wire.META, "b", 0, blob)
    assert sealer(new).unseal(wire.META, "b", 0, both.seal(wire.META, "b", 0, b"y")) == b"y"


def test_a_key_that_is_added_to_the_file_later_is_accepted_and_does_not_sign(tmp_path):
    old, new = "o" * 40, "n" * 40
    path = tmp_path / "secret"
    path.write_text(old + "\n")
    path.chmod(0o600)
    running = wire.Sealer(wire.Keyring.load(tmp_path, {}), "nbq")
    blob = sealer(new.encode()).seal(wire.META, "b", 0, b"x")
    with pytest.raises(UnknownKey):
        running.unseal(wire.META, "b", 0, blob)
    path.write_text(f"{new}\n{old}\n")
    assert running.unseal(wire.META, "b", 0, blob) == b"x"
    assert running.keyring.key == old.encode()
    path.chmod(0o644)
    with pytest.raises(UnknownKey):
        running.unseal(wire.META, "b", 0, sealer(b"z" * 40).seal(wire.META, "b", 0, b"x"))
    assert running.unseal(wire.META, "b", 0, blob) == b"x"


# ---------------------------------------------------------------- the secret file


def test_a_secret_is_made_at_first_use_and_read_by_nobody_else(tmp_path):
    ring = wire.Keyring.load(tmp_path / "home", {})
    path = tmp_path / "home/secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert wire.Keyring.load(tmp_path / "home", {}).key == ring.key


def test_two_processes_that_start_at_once_have_one_secret(tmp_path):
    found = []
    gate = threading.Barrier(8)

    def load():
        gate.wait()
        found.append(wire.Keyring.load(tmp_path, {}).key)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_secret_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x" * 40)
    path.chmod(0o644)
    with pytest.raises(BadSecret, match=r"chmod 600 .*secret"):
        wire.Keyring.load(tmp_path, {})


def test_a_symlink_is_refused(tmp_path):
    (tmp_path / "real").write_text("x" * 40)
    (tmp_path / "secret").symlink_to(tmp_path / "real")
    with pytest.raises(BadSecret, match="plain file"):
        wire.Keyring.load(tmp_path, {})


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "secret").mkdir()
    with pytest.raises(BadSecret, match="plain file"):
        wire.Keyring.load(tmp_path, {})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of another user's")
def test_another_users_secret_is_refused(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x" * 40)
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(BadSecret, match="belongs to user 12345"):
        wire.Keyring.load(tmp_path, {})


def test_several_lines_are_several_keys(tmp_path):
    path = tmp_path / "secret"
    path.write_text("n" * 40 + "\n\n" + "o" * 40 + "\n")
    path.chmod(0o600)
    ring = wire.Keyring.load(tmp_path, {})
    assert ring.key == b"n" * 40
    assert len(ring.ids) == 2


@pytest.mark.parametrize(("text", "why"), [("", "empty"), ("short", "too short")])
def test_a_secret_that_is_none_is_refused(tmp_path, text, why):
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(BadSecret, match=why):
        wire.Keyring.load(tmp_path, {})


def test_the_environment_comes_first(tmp_path):
    assert wire.Keyring.load(tmp_path, {"NBQUEUE_SECRET": "e" * 40}).key == b"e" * 40
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- pickles


class Endless:
    def __init__(self):
        self.written = 0

    def __reduce__(self):
        return list, (), None, self.items()

    def items(self):
        while True:
            self.written += 1
            yield b"x" * 10_000


def test_pickling_stops_while_it_is_written():
    endless = Endless()
    with pytest.raises(TooLarge, match="over 1 MB"):
        wire.dumps(endless, 1 << 20)
    assert endless.written < 200_000 // 10


class Mine:
    pass


def test_what_names_main_travels_by_value(monkeypatch):
    monkeypatch.setattr(Mine, "__module__", "__main__")
    assert b"cloudpickle" in wire.dumps(Mine(), 1 << 20)
    assert wire.loads(wire.dumps({"a": [1, 2]}, 1 << 20)) == {"a": [1, 2]}
    assert wire.dumps(7, 10) == pickle.dumps(7, 5)


def outer():
    def inner():
        return [1 / x for x in (0,)]

    return inner


@pytest.mark.parametrize("way", ["by_value", "dumps", "dump"])
def test_a_function_that_travels_by_value_keeps_the_names_of_its_files(way):
    made = compile("def made():\n    return [lambda: None]\n", "a cell.py", "exec")
    exec(made, names := {"__name__": "__main__"})
    things = [outer(), names["made"]]
    if way == "dump":
        sink = Kept()
        wire.dump(things, sink)
        data = sink.getvalue()
    else:
        data = getattr(wire, way)(things, 1 << 20)
    inner, there = wire.loads(data)
    assert inner is not things[0]
    assert {code.co_filename for code in codes(inner.__code__)} == {__file__}
    assert {code.co_filename for code in codes(there.__code__)} == {"a cell.py"}
    assert inner.__code__ == things[0].__code__


class Kept(io.BytesIO):
    def begin_again(self):
        self.seek(0)
        self.truncate()


def codes(code):
    yield code
    for part in code.co_consts:
        if isinstance(part, type(code)):
            yield from codes(part)


def test_the_modules_that_a_pickle_names_are_read_without_opening_it():
    import collections
    import decimal
    import fractions

    many = [decimal.Decimal(1), fractions.Fraction(1, 2), decimal.Decimal(2), collections.OrderedDict(a=fractions)]
    for value, names in [
        (1, set()),
        ("\x93" * 100, set()),
        (["decimal", "Decimal", "\x93"] * 100, set()),
        (many[:3], {"decimal", "fractions"}),
        ([*many[:2], {"x": collections.Counter()}], {"decimal", "fractions", "collections"}),
    ]:
        assert wire.modules_named(wire.dumps(value, 1 << 20)) - {"builtins"} == names
    assert {"collections", "cloudpickle.cloudpickle"} <= wire.modules_named(wire.by_value(many[3], 1 << 20))
    long = wire.dumps([*map(float, range(100_000)), decimal.Decimal(1)], 1 << 24)
    assert wire.modules_named(long) == set()  # its beginning is read, however long it is
