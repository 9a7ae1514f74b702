import os
import secrets
import socket

import pytest
import redis
import troubles
from helpers import claim, join, new_batch, submit
from redis import exceptions as wrong

from nbqueue.errors import BadOption, NoServer, ServerRefused, ServerUnfit, WrongPassword
from nbqueue.store import server as program
from nbqueue.store.broker import Broker
from nbqueue.store.connection import adopt, connect, preflight, refuse, shown, translate
from nbqueue.store.ear import Ear, Hints


@pytest.fixture
def own(short_folder):
    return program.start(short_folder, program=os.environ.get("NBQUEUE_TEST_SERVER"))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_no_server(short_folder):
    for url in (f"redis://127.0.0.1:{free_port()}", f"unix://{short_folder}/none.sock"):
        with pytest.raises(NoServer, match="nbqueue server start"):
            preflight(connect(url))
        with pytest.raises(ConnectionError):
            Broker(connect(url), "x").now_us()
        with pytest.raises(NoServer):
            Ear(connect(url)).listen(["x"], 1)


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "", "redis://host:port"])
def test_urls_that_cannot_be_meant(url):
    with pytest.raises(BadOption):
        connect(url)


def test_a_wrong_password(short_folder):
    place = program.start(
        short_folder,
        port=free_port(),
        bind="127.0.0.1",
        password="right",
        program=os.environ.get("NBQUEUE_TEST_SERVER"),
    )
    port = place.public.rpartition(":")[2].partition("/")[0]
    for url in (f"redis://:wrong@127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):
        with pytest.raises(WrongPassword) as failed:
            preflight(connect(url))
        assert "wrong@" not in str(failed.value)
    assert preflight(connect(f"redis://:right@127.0.0.1:{port}")) == []
    assert preflight(connect(place.url)) == []


def test_passwords_are_not_shown():
    assert shown("redis://me:secret@host:1/0") == "redis://me:***@host:1/0"
    assert shown("unix:///a?password=secret&db=1") == "unix:///a?password=***&db=1"
    assert shown("redis://host") == "redis://host"


def test_too_old():
    for version in ("6.0.16", "5.0.7", "3.2", "0"):
        with pytest.raises(ServerUnfit, match=r"6\.2"):
            refuse({"redis_version": version}, "url")
    for version in ("6.2.0", "7.0.15", "8.2.1", "10.0"):
        refuse({"redis_version": version}, "url")


def test_a_replica(own, server):
    port = free_port()
    client = connect(own.url).client
    client.execute_command("REPLICAOF", "127.0.0.1", port)
    with pytest.raises(ServerUnfit, match=f"redis://127\\.0\\.0\\.1:{port}"):
        preflight(connect(own.url))
    with pytest.raises((ServerRefused, NoServer), match=r"replica|loading|master"):
        submit(Broker(connect(own.url), "x"))


def test_eviction(own):
    connection = connect(own.url)
    connection.client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ServerUnfit, match="config set maxmemory-policy noeviction"):
        preflight(connection)


def test_no_persistence_is_only_told(own):
    connection = connect(own.url)
    connection.client.config_set("appendonly", "no")
    (warning,) = preflight(connection)
    assert "append-only" in warning


def test_a_key_of_another_type(broker):
    broker.client.set(broker.keys.at("q", "default"), "mine")
    with pytest.raises(ServerRefused, match="NBQUEUE_NAMESPACE"):
        submit(broker)
    broker.client.delete(broker.keys.at("q", "default"))
    broker.client.delete(*broker.client.scan_iter(match=broker.keys.prefix + "*"))


@pytest.mark.parametrize(
    ("error", "expected", "word"),
    [
        (wrong.ResponseError("MISCONF Redis is configured to save"), ServerRefused, "disk"),
        (wrong.ReadOnlyError("You can't write against a read only replica."), ServerRefused, "replica"),
        (wrong.ResponseError("BUSY Redis is busy running a script"), ServerRefused, "script kill"),
        (wrong.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), ServerRefused, "maxmemory"),
        (wrong.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), ServerRefused, "maxmemory"),
        (wrong.BusyLoadingError("Redis is loading the dataset in memory"), NoServer, "loading"),
        (wrong.TimeoutError("Timeout reading from socket"), NoServer, "Timeout"),
        (wrong.ResponseError("NOAUTH Authentication required."), WrongPassword, "URL"),
        (wrong.ResponseError("something new"), ServerRefused, "something new"),
    ],
)
def test_every_error_says_what_to_do(error, expected, word):
    found = translate(error, "redis://host")
    assert isinstance(found, expected)
    assert isinstance(found, redis.exceptions.RedisError)  # for those who catch redis-py's own
    assert type(found).__name__ == expected.__name__
    assert word in str(found)
    assert word in repr(found)


def test_a_client_of_the_user_s_is_adopted(own):
    theirs = redis.Redis(unix_socket_path=own.url.removeprefix("unix://"), decode_responses=True)
    broker = Broker(adopt(theirs), "x")
    submit(broker, n=2)
    assert broker.arguments("b1", [0]) == [b"arg0"]
    assert broker.url == own.url
    assert theirs.get("nothing") is None


def test_scripts_that_the_server_forgot(broker):
    join(broker)
    for number in range(5):
        broker.client.script_flush()
        submit(broker, f"b{number}", n=2500)
        broker.client.script_flush()
        assert claim(broker, want=1).grants


def test_an_ear_hears(broker):
    ear = Ear(broker.connection)
    key = broker.keys.bell("default")
    ear.listen([key, broker.keys.mail("w1")], 10)
    assert ear.hear() is None
    assert ear.listening
    submit(broker)
    assert heard(ear) == (key, b"1")
    ear.listen([key], 0.02)
    assert heard(ear) is None
    ear.close()


def test_an_ear_may_lose_its_connection_again_and_again(broker):
    ear = Ear(broker.connection)
    for _ in range(150):  # more than redis-py's pools allow at a time, by default
        ear.listen([broker.keys.bell("default")], 10)
        ear.close()


def heard(ear):
    import select

    while ear.listening:
        select.select([ear], [], [], 5)
        if found := ear.hear():
            return found
    return None


def test_an_ear_may_listen_elsewhere(broker):
    ear = Ear(broker.connection)
    ear.listen([broker.keys.bell("a")], 10)
    ear.listen([broker.keys.bell("b")], 10)
    submit(broker, queue="b")
    assert heard(ear) == (broker.keys.bell("b"), b"1")
    ear.close()


def test_an_ear_outlives_its_connection(broker):
    ear = Ear(broker.connection)
    key = broker.keys.bell("default")
    ear.listen([key], 10)
    broker.client.client_kill_filter(_id=ear._client_id)
    assert heard(ear) is None
    ear.listen([key], 10)
    submit(broker)
    assert heard(ear) == (key, b"1")
    ear.close()


def test_an_ear_may_lose_its_connection_any_number_of_times(broker):
    ear = Ear(broker.connection)
    for _ in range(150):
        ear.listen([broker.keys.bell("other")], 10)  # not the one below: a closed ear may still take what comes
        ear.close()
    submit(broker)
    ear.listen([broker.keys.bell("default")], 10)
    assert heard(ear) == (broker.keys.bell("default"), b"1")
    ear.close()


def test_an_ear_that_is_refused_does_not_ask_all_the_time(broker):
    broker.client.hset(broker.keys.bell("default"), "a", "b")
    before = broker.client.info("stats")["total_connections_received"]
    ear = Ear(broker.connection)
    for _ in range(20):
        ear.listen([broker.keys.bell("default")], 10)
        assert heard(ear) is None
    assert broker.client.info("stats")["total_connections_received"] - before < 5
    ear.close()
    broker.client.delete(broker.keys.bell("default"))


def test_hints_name_batches(broker):
    hints = Hints(broker.connection, broker.keys.hint("s1"))
    assert hints.wait(0.05) == set()
    submit(broker, name=f"n{secrets.token_hex(4)}")
    broker.cancel("b1")
    assert hints.wait(5) == {"b1"}
    hints.close()


@pytest.mark.parametrize("word", ["OOM", "MISCONF", "READONLY", "BUSY"])
def test_each_trouble_of_a_server_is_told_apart_and_passes(own, word):
    broker = Broker(connect(own.url), "x")
    submit(broker)
    with troubles.MADE[word](broker.client):
        for refused in (
            lambda: submit(broker, "b2"),
            lambda: broker.submit_many([(new_batch("s1", single=True), b"x")]),
        ):
            with pytest.raises(ServerRefused, match=troubles.REMEDIES[word]) as failed:
                refused()
            assert failed.value.kind == word
        if word == "BUSY":  # nobody may even read
            with pytest.raises(ServerRefused, match=troubles.REMEDIES[word]):
                broker.view("b1")
        else:
            assert broker.view("b1").n == 4
    submit(broker, "b2")


def test_a_server_that_loads_its_data(short_folder):
    with troubles.loading(short_folder, os.environ.get("NBQUEUE_TEST_SERVER")) as url:
        for refused in (
            lambda: preflight(connect(url)),
            lambda: submit(Broker(connect(url), "x")),
            lambda: Broker(connect(url), "x").view("b1"),
        ):
            with pytest.raises(NoServer, match=troubles.REMEDIES["LOADING"]) as failed:
                refused()
            assert failed.value.kind == "LOADING"


def test_a_disk_that_took_no_data_is_told_at_connect(own):
    client = connect(own.url).client
    with troubles.misconf(client):
        assert any("could not write its data to disk" in note for note in preflight(connect(own.url)))
    assert not any("could not write" in note for note in preflight(connect(own.url)))
