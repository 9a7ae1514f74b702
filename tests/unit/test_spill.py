"""Large results in a folder: made new, never through a link, and checked before anybody opens them."""

import os
import resource
import shutil
import subprocess
import time

import msgspec
import numpy as np
import pytest

from nbqueue import perform, spill, wire
from nbqueue.checks import spill_root
from nbqueue.errors import BadOption, BadSignature, SpillFailed, SpillLost
from nbqueue.model import Cause, Options, Outcome, State

BIG = 3 << 20


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "_roots", {})
    return tmp_path / "spill"


@pytest.fixture
def strict(monkeypatch):
    """A store that takes nothing over 1 MB."""
    monkeypatch.setattr(perform, "MAX_RESULT", 1 << 20)


def ride(function, root, max_result=None):
    place = spill.Place(str(root), "ns", "b", 3, 1)
    return perform.perform(function, perform.pack((), {}), job="b:3", max_result=max_result, spill_to=place)


def spilled(root, value=None):
    found = ride(lambda: bytes(BIG) if value is None else value, root)
    assert found.state is State.FINISHED, found.failure
    return found.spilled


def opened(found):
    return perform.opened(Outcome(State.FINISHED, None, 1, 0, 0, spilled=found))


def file_of(root, found):
    return root / found.name


def folder(root):
    return root / f"ns-{os.getuid()}" / "b"


def test_a_large_result_goes_to_a_file_that_only_its_user_may_read(root):
    found = ride(lambda: bytes(BIG), root)
    assert found.value is None
    assert found.spilled.size > BIG
    file = file_of(root, found.spilled)
    assert file.parent == folder(root)
    assert file.name.startswith("3-1-")
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder(root).stat().st_mode & 0o777 == 0o700
    assert opened(found.spilled) == bytes(BIG)


def test_a_small_one_does_not(root):
    assert wire.loads(ride(lambda: ["x" * 100], root).value) == ["x" * 100]
    assert not root.exists()


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_written_as_it_lies(root, order):
    array = np.asarray(np.arange(400_000.0).reshape(500, 800), order=order)
    assert (opened(spilled(root, array)) == array).all()


class OfTheNotebook:
    def __init__(self, data):
        self.data = data


def test_what_only_the_notebook_knows_travels_whole(root, monkeypatch):
    monkeypatch.setattr(OfTheNotebook, "__module__", "__main__")
    found = spilled(root, [OfTheNotebook(bytes(BIG)), lambda: 7])
    kept, function = opened(found)
    assert (len(kept.data), function()) == (BIG, 7)
    assert len(list(folder(root).iterdir())) == 1  # the first try has left nothing


def test_a_new_run_leaves_the_file_of_the_one_before(root):
    first, second = spilled(root), spilled(root)
    assert first.name != second.name
    assert opened(first) == opened(second)


def test_the_limit_is_that_of_the_user(root):
    found = ride(lambda: [bytes(1 << 20) for _ in range(3)], root, max_result=2 << 20)
    assert (found.cause, found.failure.type) == (Cause.TOO_LARGE, "nbqueue.errors.TooLarge")
    assert "2 MB" in found.failure.message
    assert list(folder(root).iterdir()) == []


def test_what_cannot_be_pickled_leaves_no_file(root):
    found = ride(lambda: [bytes(BIG), (i for i in ())], root)
    assert found.cause is Cause.UNSERIALIZABLE
    assert list(folder(root).iterdir()) == []


# ---------------------------------------------------------------- damage and attacks


def test_a_flipped_bit_is_never_opened(root):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(root / "opened"),)

    found = spilled(root)
    with file_of(root, found).open("r+b") as file:
        file.write(wire.by_value(Bomb(), 1 << 20))
    with pytest.raises(BadSignature, match=found.name):
        opened(found)
    assert not (root / "opened").exists()


def test_a_file_cut_short(root):
    found = spilled(root)
    with file_of(root, found).open("r+b") as file:
        file.truncate(10)
    with pytest.raises(BadSignature, match=found.name):
        opened(found)


def test_a_missing_file_is_named(root):
    found = spilled(root)
    file_of(root, found).unlink()
    with pytest.raises(SpillLost, match=found.name) as lost:
        opened(found)
    assert "retry" in str(lost.value)


def test_a_link_in_the_place_of_a_file_is_not_followed(root, tmp_path):
    found = spilled(root)
    file_of(root, found).rename(tmp_path / "elsewhere")
    file_of(root, found).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpillLost, match="symbolic"):
        opened(found)


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(root):
    found = spilled(root)
    file_of(root, found).unlink()
    os.mkfifo(file_of(root, found))
    with pytest.raises(SpillLost, match="plain file"):
        opened(found)


@pytest.mark.parametrize("which", ["namespace", "batch"])
def test_a_link_in_the_place_of_a_folder_is_not_written_through(root, tmp_path, strict, which):
    aim = tmp_path / "aim"
    aim.mkdir()
    place = folder(root) if which == "batch" else folder(root).parent
    place.parent.mkdir(parents=True, mode=0o700)
    place.symlink_to(aim)
    found = ride(lambda: bytes(BIG), root)
    assert (found.cause, found.failure.type) == (Cause.TOO_LARGE, "nbqueue.errors.SpillFailed")
    assert str(root) in found.failure.message
    assert list(aim.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_not_used(root, strict):
    folder(root).mkdir(parents=True)
    folder(root).chmod(0o777)
    found = ride(lambda: bytes(BIG), root)
    assert "others own this folder, or may write to it" in found.failure.message


def test_the_root_itself_may_be_a_link(root, tmp_path):
    (tmp_path / "disk").mkdir()
    root.symlink_to(tmp_path / "disk")
    assert opened(spilled(root)) == bytes(BIG)


# ---------------------------------------------------------------- a place that takes nothing


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB; where none may be mounted, files may not grow over that."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    yield place
    if mounted:
        subprocess.run(["umount", str(place)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_with_its_folder(small_disk, strict):
    found = ride(lambda: bytes(BIG), small_disk)
    assert (found.cause, found.failure.type) == (Cause.TOO_LARGE, "nbqueue.errors.SpillFailed")
    assert str(small_disk) in found.failure.message
    assert "full" in found.failure.message or "too large" in found.failure.message.lower()
    assert list(folder(small_disk).iterdir()) == []


def test_what_fits_goes_through_the_store_where_the_disk_is_full(small_disk, capsys):
    found = ride(lambda: bytes(BIG), small_disk)
    assert found.state is State.FINISHED
    assert wire.loads(found.value) == bytes(BIG)
    assert str(small_disk) in capsys.readouterr().err


def test_a_root_that_is_not_mounted(tmp_path, strict):
    found = ride(lambda: bytes(BIG), tmp_path / "a" / "b")
    assert "No such file" in found.failure.message


# ---------------------------------------------------------------- another mount point, removal, URLs


def test_the_own_setting_wins_over_the_recorded_place(root, tmp_path):
    found = spilled(root)
    root.rename(tmp_path / "mounted elsewhere")
    with pytest.raises(SpillLost):
        opened(found)
    spill.here(str(tmp_path / "mounted elsewhere"))
    assert opened(found) == bytes(BIG)


def test_folders_and_forget(root):
    found = spilled(root)
    (one,) = spill.folders(str(root), "ns")
    assert (one.batch, one.size) == ("b", found.size)
    assert abs(one.written - time.time()) < 60
    assert spill.folders(str(root), "other") == []
    spill.forget(str(root), "ns", "b")
    assert spill.folders(str(root), "ns") == []
    spill.forget(str(root), "ns", "b")


def test_forget_follows_no_link(root, tmp_path):
    aim = tmp_path / "aim"
    aim.mkdir()
    (aim / "file").touch()
    spilled(root)
    shutil.rmtree(folder(root))
    folder(root).symlink_to(aim)
    with pytest.raises(SpillLost):
        spill.forget(str(root), "ns", "b")
    assert (aim / "file").exists()


def test_a_url(root, tmp_path):
    url = f"local://{tmp_path}/remote"
    found = spilled(url)
    assert found.root == url
    assert opened(found) == bytes(BIG)
    (one,) = spill.folders(url, "ns")
    assert (one.batch, one.size) == ("b", found.size)
    with (tmp_path / "remote" / found.name).open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(BadSignature):
        opened(found)
    spill.forget(url, "ns", "b")
    spill.forget(url, "ns", "b")
    with pytest.raises(SpillLost, match=found.name):
        opened(found)


def test_a_url_for_which_a_package_is_missing(strict):
    with pytest.raises(BadOption, match="pip install fsspec s3fs"):
        spill.check("s3://bucket/folder")
    found = ride(lambda: bytes(BIG), "s3://bucket/folder")
    assert "pip install fsspec s3fs" in found.failure.message


@pytest.mark.parametrize("value", [3, "", "memory://x", "a\0b", "s3://key:secret@bucket/x", b"bytes"])
def test_places_that_cannot_be_meant(value):
    with pytest.raises(BadOption, match="spill="):
        Options().replaced(spill=value)


def test_places_as_they_are_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spill_root("spill", "x") == str(tmp_path / "x")
    assert spill_root("spill", tmp_path) == str(tmp_path)
    assert spill_root("spill", "file:///a/b") == "/a/b"
    assert spill_root("spill", "s3://bucket/x/") == "s3://bucket/x"
    assert spill_root("spill", None) is None
    assert spill_root("spill", "off") == "off"


def test_an_error_can_be_sent():
    why = SpillFailed(what="It", folder="/x", why="full", remedy="Do.")
    assert str(wire.loads(wire.dumps(why, 10_000))) == str(why)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Outcome(State.FINISHED, None, 1, 0, 0)), type=Outcome)


def test_what_the_folder_does_not_take_is_not_pickled_a_second_time_for_it():
    begun = []

    class Full:
        def write(self, _):
            raise SpillFailed(what="It", folder="/x", why="full", remedy="Do.")

        def begin_again(self):
            begun.append(1)

    with pytest.raises(SpillFailed):
        wire.dump([bytes(BIG)], Full())
    assert begun == []
