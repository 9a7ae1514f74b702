"""What is decided outside the code, in order: arguments, environment, connection file, config file, defaults."""

import os

import pytest

from nbqueue import settings
from nbqueue.errors import BadOption
from nbqueue.settings import born
from nbqueue.worker.marks import own_mark
from nbqueue.worker.plan import Plan


def test_who_wins(tmp_path):
    environ = {"NBQUEUE_HOME": str(tmp_path)}
    assert settings.load(environ=environ).url is None
    (tmp_path / "config.toml").write_text('url = "redis://config"\nnamespace = "mine"\nslots = 3\n')
    assert settings.load(environ=environ).url == "redis://config"
    (tmp_path / "connection.toml").write_text('url = "redis://connection"\n')
    found = settings.load(environ=environ)
    assert (found.url, found.namespace, found.slots) == ("redis://connection", "mine", 3)
    environ["NBQUEUE_URL"] = "redis://environment"
    assert settings.load(environ=environ).url == "redis://environment"
    assert settings.load("redis://argument", environ=environ).url == "redis://argument"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("url = 3", "type str"),
        ('urk = "redis://x"', "not a setting"),
        ("url = [", "cannot be read"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_config_file_that_cannot_be_meant(tmp_path, text, why):
    (tmp_path / "config.toml").write_text(text, encoding="latin-1")
    with pytest.raises(BadOption, match=why):
        settings.load(environ={"NBQUEUE_HOME": str(tmp_path)})


@pytest.mark.parametrize(("word", "meant"), [("", False), ("0", False), ("1", True), ("collect", "collect")])
def test_inline(tmp_path, word, meant):
    assert settings.load(environ={"NBQUEUE_HOME": str(tmp_path), "NBQUEUE_INLINE": word}).inline == meant


@pytest.mark.parametrize("name", ["NBQUEUE_INLINE", "NBQUEUE_SLOTS"])
def test_a_variable_that_cannot_be_meant(tmp_path, name):
    with pytest.raises(BadOption, match=name):
        settings.load(environ={"NBQUEUE_HOME": str(tmp_path), name: "perhaps"})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_slots_are_the_cpus_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert settings.cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert settings.cpus() == len(before)
    assert Plan().slots == 0


def test_a_mark_names_a_process_that_lives():
    _, pid, since, namespace = own_mark("w-1").split("/")
    assert int(pid) == os.getpid()
    assert since == born(os.getpid())
    assert namespace == "" or namespace.startswith("pid:")
    assert born(2**22 - 1) == ""


def test_a_home_where_others_may_write_is_refused(tmp_path):
    """They could put a secret, or the address of a server of theirs, in it."""
    environ = {"NBQUEUE_HOME": str(tmp_path)}
    tmp_path.chmod(0o777)
    with pytest.raises(BadOption, match=f"chmod go-w {tmp_path}"):
        settings.load(environ=environ)
    tmp_path.chmod(0o755)
    assert settings.load(environ=environ).home == tmp_path


def test_a_home_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(BadOption, match=r"belongs to user .* Set NBQUEUE_HOME to a folder of your own"):
        settings.load(environ={"NBQUEUE_HOME": str(tmp_path)})
