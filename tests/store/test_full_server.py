import os
import shutil

import pytest
from helpers import claim, ended, expire, finish_all, join, leases, new_batch, submit

from nbqueue.errors import ServerRefused
from nbqueue.store import server
from nbqueue.store.broker import Broker
from nbqueue.store.connection import connect

REDIS = shutil.which("redis-server")


@pytest.fixture(params=["ours", "redis-server"])
def full(request, short_folder):
    """A Broker on a server whose memory is full: two jobs are held, one waits."""
    program = os.environ.get("NBQUEUE_TEST_SERVER")
    if request.param == "redis-server":
        if REDIS is None:
            pytest.skip("there is no redis-server on PATH")
        program = REDIS
    broker = Broker(connect(server.start(short_folder, program=program).url), "test")
    join(broker)
    submit(broker, n=3)
    held = leases(claim(broker, want=2))
    upload = submit(broker, "b2", n=1, last=False)
    broker.client.config_set("maxmemory", broker.client.info("memory")["used_memory"] // 2)
    return broker, held, upload


def test_new_work_is_refused_with_a_remedy(full):
    broker, _, upload = full
    with pytest.raises(ServerRefused, match="config set maxmemory"):
        broker.submit(new_batch("b3"), [b"x"], last=True)
    with pytest.raises(ServerRefused, match="maxmemory"):
        broker.extend("b2", 1, [b"x"], nonce=upload.nonce, last=True)
    assert broker.view("b3") is None
    assert broker.view("b2").n == 1


def test_all_else_goes_on(full):
    broker, held, _ = full
    assert broker.settle("w1", [ended(held[0])]) == ["OK"]
    assert broker.renew("w1", held).fallen == held[:1]
    broker.release("w1", held[1:])
    join(broker, "w2")
    assert len(leases(claim(broker, "w1", want=1))) == 1
    expire(broker, "w1")
    assert broker.reap().jobs == 1
    assert finish_all(broker, "w2") == 3
    assert broker.view("b1").tally.finished == 3
    assert broker.save("b1", 0, b"meta")
    assert broker.retry("b1", [(0, 1)], nonce="n1") == 1
    assert broker.cancel("b1") == 1
    assert broker.cancel("b2") == 0
    assert broker.promote() is not None
    assert broker.forget("b1")
    assert broker.post("w2", b"message")
    broker.suspend()
    broker.resume()
    assert broker.leave("w2")
