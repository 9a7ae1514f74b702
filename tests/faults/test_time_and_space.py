"""Time and space: clocks that are wrong, results that expire under the reader, kernels that die, paths and files.

A full disk, a torn tail and a flipped bit of the spool are in tests/client/test_spool.py, long socket paths and stale
files of the server in tests/store/test_server.py and tests/acceptance/test_local_mode.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from grounds import LIMIT
from helpers import wait_until

import nbqueue
from nbqueue.client.session import session as sessions
from nbqueue.errors import Expired

CLOCK = """
import time
shift = {shift}
real, real_ns, real_gettime = time.time, time.time_ns, time.clock_gettime
time.time = lambda: real() + shift
time.time_ns = lambda: real_ns() + shift * 1_000_000_000
time.clock_gettime = lambda which: real_gettime(which) + (shift if which == time.CLOCK_REALTIME else 0)
"""


def clock(_):
    time.sleep(0.3)
    return time.time()


def test_the_clock_of_a_worker_is_an_hour_off(session, fleet, witness, tmp_path):
    """Python's clock of all its processes is another; the kernel's cannot be set for a process alone."""
    for name, hours in (("behind", -1), ("ahead", 1), ("right", 0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(CLOCK.format(shift=3600 * hours))
        fleet.start("--name", name, slots=1, env={"PYTHONPATH": str(folder)})
    began = session.broker.now_us()
    batch = nbqueue.map(witness.job(0.3), range(15))
    witness.watch(batch.id)
    assert batch.wait(LIMIT)
    ended = session.broker.now_us()
    outcomes = [job.outcome for job in batch]
    assert {each.worker.partition("-")[0] for each in outcomes} == {"behind", "ahead", "right"}
    assert {each.attempt for each in outcomes} == {1}
    for each in outcomes:  # dated by the server's clock, whatever the worker's says
        assert began - 50_000 <= each.started_us <= each.started_us + each.runtime_us <= ended + 50_000
    witness.check(batch.id)
    told = nbqueue.map(clock, range(9))
    hours = {round((then - time.time()) / 3600) for then in told.results(timeout=LIMIT)}
    assert hours == {-1, 0, 1}  # the jobs' clocks were wrong indeed
    witness.check_gone(batch, told)


def test_results_expire_while_they_are_gathered(wire, no_copy):
    """Whoever waits is told, and what was copied before stays."""
    wire.fleet.url = wire.server_url  # only the notebook's wire fails
    wire.start().up()
    first = wire.map(20, 0.05, result_ttl=0.3)
    wait_until(lambda: first.ref.state.collected >= 3, 20)
    wire.proxy.closed = True
    wire.proxy.cut()
    wait_until(lambda: wire.broker.view(first.id) is None, 30)
    wire.proxy.closed = False
    with pytest.raises(Expired, match="result_ttl"):
        first.wait(LIMIT)
    with pytest.warns(UserWarning, match="are gone: they expired"):
        frame = first.to_frame(wait=False)
    assert len(frame) == 20
    assert 3 <= (frame["status"] == "finished").sum() < 20
    again = nbqueue.map(abs, range(4))
    assert again.wait(LIMIT)
    wire.ends_well(again)


@pytest.mark.parametrize("ttl", [0.001, 0.2])
def test_a_tiny_result_ttl_is_no_wait_for_ever(session, fleet, no_copy, ttl):
    fleet.start().up()
    batch = nbqueue.map(abs, range(1_500), result_ttl=ttl)
    try:
        assert batch.wait(LIMIT)
    except Expired:
        assert batch.to_frame(wait=False)["status"].isin(["finished", "queued"]).all()
    job = nbqueue.options(result_ttl=ttl).submit(abs, -1)
    with contextlib.suppress(Expired):
        assert job.wait(LIMIT) == 1


KERNEL = """
    import os, sys
    import nbqueue
    nbqueue.connect({url!r}, namespace={namespace!r})
    sys.path.insert(0, {tests!r})
    from witness import noting
    import witness
    import cloudpickle, time
    cloudpickle.register_pickle_by_value(witness)
    path, make = {path!r}, noting
    def witnessed(x):
        with make(path):
            time.sleep(0.2)
        return x
    batch = nbqueue.map(witnessed, range(16), name="overnight")
    print(batch.id, flush=True)
    batch.wait()
"""


def test_the_kernel_is_killed_and_a_second_notebook_gets_all(server, session, fleet, witness):
    worker = fleet.start().up()
    facts = {"tests": str(Path(__file__).parents[1]), "url": server.url, "path": str(witness.path)}
    code = textwrap.dedent(KERNEL).format(namespace=session.settings.namespace, **facts)
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with kernel:
        name = kernel.stdout.readline().strip()
        assert name, kernel.stderr.read()
        witness.watch(name)
        wait_until(lambda: witness.broker.view(name).tally.finished >= 4, 30)
        kernel.send_signal(signal.SIGKILL)
        assert kernel.wait(10) == -signal.SIGKILL
    batch = nbqueue.attach("overnight")
    assert batch.id == name
    assert not batch.done
    assert batch.wait(LIMIT), worker.log
    frame = batch.to_frame()
    assert frame["result"].tolist() == frame["x"].tolist() == list(range(16))
    assert all(len(runs) == 1 for runs in witness.lives().values())
    witness.check(name)
    witness.check_gone(batch)


UPLOAD = """
    import os, signal, time
    import nbqueue
    nbqueue.connect({url!r}, namespace={namespace!r})
    def endless():
        for number in range(10_000):
            yield number
            time.sleep(0.001)
    batch = nbqueue.map(abs, endless(), name="half")
    while batch.tally.n < 200:
        time.sleep(0.01)
    print(batch.id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_kernel_is_killed_while_it_uploads(server, session, fleet):
    """What arrived runs; when the upload's lease is over the batch ends at that, and says that it was cut."""
    fleet.start().up()
    code = textwrap.dedent(UPLOAD).format(url=server.url, namespace=session.settings.namespace)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    broker, name = session.broker, killed.stdout.strip()
    wait_until(lambda: (view := broker.view(name)).tally.finished == view.tally.n >= 200, 30)
    # Its 30 s are over.
    broker.client.zadd(broker.keys.at("later"), {f"upload:{name}": 1}, xx=True)
    with pytest.warns(UserWarning, match="cut"):
        frame = nbqueue.attach("half").to_frame(timeout=LIMIT)
    assert frame["result"].tolist() == list(range(len(frame)))
    assert len(frame) >= 200


def test_a_home_too_deep_for_a_socket(tmp_path, monkeypatch, local_home):
    """Local mode as a whole: server, worker and notebook agree on a short path, and it goes with the server."""
    home = tmp_path / ("deep" * 20) / ("er" * 20)
    home.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("NBQUEUE_HOME", str(home))
    batch = nbqueue.map(abs, [-1, -2])
    assert batch.results(timeout=LIMIT) == [1, 2]
    path = Path(sessions.current().server.removeprefix("unix://"))
    assert len(os.fsencode(path)) <= 107
    nbqueue.local().stop()
    assert not path.exists()
    path.parent.rmdir()
