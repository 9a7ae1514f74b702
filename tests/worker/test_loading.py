"""Loading the function: its place, its modules, and what cannot be loaded."""

from __future__ import annotations

import hashlib
import os
import sys
import textwrap
import threading
from pathlib import Path

from stable_driver import Driver

from nbqueue import wire
from nbqueue.errors import LoadError
from nbqueue.model import State
from nbqueue.worker import loading


def write_module(folder, name, text):
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(text))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def by_reference(module, name):
    return f"c{module}\n{name}\n.".encode()


def test_a_module_is_verified_and_imported_once(tmp_path):
    digest = write_module(tmp_path, "mymod", "def f(x):\n    return x + 1\n")
    with Driver(by_reference("mymod", "f"), modules={"mymod": digest}, path=(str(tmp_path),)) as driver:
        assert driver.values(1, 2) == [2, 3]


def test_another_source_is_unfit_and_named(tmp_path):
    write_module(tmp_path, "mymod2", "def f(x):\n    return x + 1\n")
    with Driver(by_reference("mymod2", "f"), modules={"mymod2": "0" * 64}, path=(str(tmp_path),)) as driver:
        driver.until(lambda: driver.unfit)
    assert "mymod2" in driver.unfit.message
    assert os.uname().nodename in driver.unfit.message
    assert isinstance(wire.loads(driver.unfit.pickled), LoadError)


def test_a_missing_module_is_unfit_and_named():
    for facts in ({"modules": {"nowhere": "0" * 64}}, {}):
        with Driver(by_reference("nowhere", "f"), **facts) as driver:
            driver.until(lambda: driver.unfit)
        assert "No module named 'nowhere'" in driver.unfit.message


def test_an_import_that_exits_is_unfit(tmp_path):
    write_module(tmp_path, "exits", "import sys\nsys.exit(3)\n")
    with Driver(by_reference("exits", "f"), path=(str(tmp_path),)) as driver:
        driver.until(lambda: driver.unfit)
    assert "SystemExit" in driver.unfit.message


THREADED = """
    import os, threading, time
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    loader = os.getpid()
    def f(x):
        return os.getpid() == loader, threading.active_count(), os.environ.get("MINE")
"""


def test_where_loading_starts_threads_the_horse_loads(tmp_path):
    write_module(tmp_path, "threaded", THREADED)
    place = {"path": (str(tmp_path),), "env": {"MINE": "yes"}}
    record = {"path": place["path"]}
    with Driver(by_reference("threaded", "f"), **record) as driver:
        seqs = driver.run(*range(5))
        rides = driver.outcomes(seqs)
        assert all(ride.state is State.FINISHED for ride in rides)
        assert {wire.loads(ride.value) for ride in rides} == {(True, 2, None)}


OPENS = """
    import os
    from nbqueue.worker import loading
    loader = os.getpid()
    loading.GPU = {folder!r},  # as if it were /dev/nvidia
    device = open({folder!r} + "/nvidia0", "w")
    def f(x):
        return os.getpid() == loader
"""


def test_where_loading_opens_a_device_the_horse_loads(tmp_path):
    write_module(tmp_path, "opens", OPENS.format(folder=str(tmp_path)))
    with Driver(by_reference("opens", "f"), path=(str(tmp_path),)) as driver:
        assert driver.values(1, 2) == [True, True]


def test_only_an_open_device_or_a_thread_keeps_a_process_from_being_forked(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert loading.must_fork_bare() == ""
    monkeypatch.setattr(loading, "GPU", (str(tmp_path),))
    with (tmp_path / "nvidia0").open("w"):
        assert loading.must_fork_bare() == f"an open {tmp_path}/nvidia0"
    assert loading.must_fork_bare() == ""


def test_a_bare_stable_has_its_horses_load(tmp_path):
    write_module(tmp_path, "bare", "import os\nloader = os.getpid()\ndef f(x):\n    return os.getpid() == loader\n")
    with Driver(by_reference("bare", "f"), bare=True, path=(str(tmp_path),)) as driver:
        assert driver.values(1, 2) == [True, True]
    with Driver(by_reference("nowhere", "f"), bare=True) as driver:
        ride = driver.outcome(1)
        assert ride.cause == "load"
        assert "nowhere" in ride.failure.message


def test_the_environment_of_a_job(tmp_path):
    secret = {"NBQUEUE_SECRET": "s" * 16, "NBQUEUE_URL": "redis://x", "JPY_PARENT_PID": "1", "OMP_NUM_THREADS": "3"}

    def f(_):
        return dict(os.environ), str(Path.cwd()), sys.stdin.read()

    record = {"cwd": str(tmp_path)}
    with Driver(env=secret) as driver:
        driver.load(f, env={"API_KEY": "k"}, **record)
        environ, cwd, stdin = driver.values(0)[0]
    assert not {"NBQUEUE_SECRET", "NBQUEUE_URL", "JPY_PARENT_PID"} & set(environ)
    assert environ["OMP_NUM_THREADS"] == "3"
    assert environ["MPLBACKEND"] == "Agg"
    assert environ["API_KEY"] == "k"
    assert int(environ["MKL_NUM_THREADS"]) >= 1
    assert (cwd, stdin) == (str(tmp_path), "")


def test_a_notebooks_class_does_not_find_the_stables_names():
    names = {"__name__": "__main__"}
    exec("class Stable:\n    x = 1\ndef f(_):\n    return Stable()\n", names)
    with Driver(names["f"]) as driver:
        assert driver.outcome(0).state is State.FINISHED


def test_what_calls_will_import_is_imported_once(tmp_path):
    log = tmp_path / "log"
    text = f"import os\nwith open({str(log)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    write_module(tmp_path, "ahead", text)
    write_module(tmp_path, "raises", "raise RuntimeError('no')\n")
    write_module(tmp_path, "exits", "raise SystemExit(3)\n")

    def f(x):
        import ahead  # noqa: F401

        if x:
            import exits  # noqa: F401
        return os.getppid()

    imports = ("ahead", "exits", "nowhere", "raises")
    for isolate in (True, False):
        log.write_text("")
        with Driver(f, path=(str(tmp_path),), imports=imports) as driver:
            stable = driver.process.pid
            assert driver.values(*[0] * 20, isolate=isolate) == [stable] * 20
            ride = driver.outcome(1)
        assert log.read_text().split() == [str(stable)]
        assert ride.failure.type == "SystemExit"


def test_the_files_of_what_is_not_pinned_are_told_also_those_that_a_horse_imports_late(tmp_path):
    write_module(tmp_path, "early", "def f(x):\n    import late\n    return late.g(x)\n")
    write_module(tmp_path, "late", "def g(x):\n    return -x\n")
    for bare in (False, True):
        place = {"path": (str(tmp_path),), "pinned": False, "bare": bare}
        with Driver(by_reference("early", "f"), **place) as driver:
            assert driver.values(1, 2, slice=5.0) == [-1, -2]
            facts = {name: (tmp_path / f"{name}.py").stat() for name in ("early", "late")}
            told = {file.path: (file.mtime_ns, file.size) for file in driver.files}
            assert told == {str(tmp_path / f"{n}.py"): (st.st_mtime_ns, st.st_size) for n, st in facts.items()}


def test_what_is_pinned_tells_none(tmp_path):
    write_module(tmp_path, "plain", "def f(x):\n    return x\n")
    with Driver(by_reference("plain", "f"), path=(str(tmp_path),)) as driver:
        assert driver.values(1, 2) == [1, 2]
        assert driver.files == []


def test_what_is_not_pinned_is_the_worker_s_before_the_client_s(tmp_path):
    for place, value in (("client", 1), ("worker", 2), ("setting", 3)):
        (tmp_path / place).mkdir()
        write_module(tmp_path / place, "whose", f"def f(x):\n    return {value}\n")
    client, worker, setting = (str(tmp_path / name) for name in ("client", "worker", "setting"))
    for pinned, env, value in ((True, {}, 1), (False, {}, 2), (False, {"PYTHONPATH": setting}, 3)):
        with Driver(by_reference("whose", "f"), path=(client,), pinned=pinned, folder=worker, env=env) as driver:
            assert driver.values(0) == [value]
