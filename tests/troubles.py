"""Troubles of a real server, made and mended: context managers over the client of a server that may be hurt."""

import os
import resource
import shutil
import subprocess
import threading
from contextlib import contextmanager, suppress

import pytest
import redis
from helpers import wait_until

MB = 1 << 20


@contextmanager
def oom(client):
    """Its memory is full."""
    client.config_set("maxmemory", max(1, client.info("memory")["used_memory"] // 2))
    yield
    client.config_set("maxmemory", 0)


@contextmanager
def misconf(client):
    """It could not save its data, and takes no writes until it can."""
    client.config_set("appendonly", "no")
    client.config_set("save", "3600 1")
    pid = client.info("server")["process_id"]
    client.set("{trouble}", os.urandom(3 * MB))
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (2 * MB, before[1]))
    save(client, "err")
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    save(client, "ok")
    client.delete("{trouble}")


def save(client, outcome):
    def saved():
        facts = client.info("persistence")
        if not facts["rdb_bgsave_in_progress"] and facts["rdb_last_bgsave_status"] != outcome:
            client.bgsave()
        return facts["rdb_last_bgsave_status"] == outcome and not facts["rdb_bgsave_in_progress"]

    wait_until(saved, 20, every=0.05)


@contextmanager
def readonly(client):
    """It was made a replica."""
    client.execute_command("REPLICAOF", "127.0.0.1", 1)
    yield
    client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def busy(client):
    """Somebody's script keeps it."""
    client.config_set("lua-time-limit", 10)
    kwargs = client.connection_pool.connection_kwargs
    other = redis.Redis(unix_socket_path=kwargs["path"], socket_timeout=60)

    def block():
        with suppress(redis.RedisError):  # it is killed in the end
            other.eval("while true do end", 0)

    thread = threading.Thread(target=block, daemon=True)
    thread.start()
    wait_until(lambda: is_busy(client), 20)
    yield
    client.script_kill()
    thread.join(20)
    other.close()


def is_busy(client):
    try:
        client.ping()
    except redis.ResponseError as why:
        return "BUSY" in str(why)
    return False


MADE = {"OOM": oom, "MISCONF": misconf, "READONLY": readonly, "BUSY": busy}
REMEDIES = {
    "OOM": "config set maxmemory",
    "MISCONF": "Free space",
    "READONLY": "URL of the primary",
    "BUSY": "script kill",
    "LOADING": "Wait until it has",
}


@contextmanager
def loading(folder, program, keys=20_000):
    """Yields the URL of a server that takes long to load what it holds; it is killed at the end."""
    program = program or shutil.which("valkey-server") or shutil.which("redis-server")
    socket = folder / "slow.sock"
    base = [str(program), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--dbfilename", "slow.rdb"]
    client = redis.Redis(unix_socket_path=str(socket))
    first = subprocess.Popen([*base, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(client), 20)
        client.mset({f"k{i}": os.urandom(200) for i in range(keys)})
        client.save()
    finally:
        first.kill()
        first.wait()
    socket.unlink(missing_ok=True)
    slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
    second = subprocess.Popen([*base, "--save", "", *slow], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_loading(client) or second.poll() is not None, 20)
        if second.poll() is not None:
            pytest.skip("before Redis 7 a server cannot be told to answer often while it loads")
        yield f"unix://{socket}"
    finally:
        second.kill()
        second.wait()
        client.close()


def answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False


def is_loading(client):
    try:
        client.ping()
    except redis.BusyLoadingError:
        return True
    except redis.RedisError:
        return False
    return False
