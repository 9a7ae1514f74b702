"""`await batch` and `await job`: as wait(), while other tasks, and a notebook's clicks, go on."""

from __future__ import annotations

import asyncio
import queue
import threading

import pytest
from helpers import wait_until
from jupyter_client.manager import start_new_kernel

import nbqueue
from nbqueue.client.batch import Batch
from nbqueue.client.lookup import find


def halve(x):
    return 10 // x


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_others_go_on_while_a_batch_is_awaited(session, hands):
    batch = nbqueue.map(halve, [1, 2, 0])
    threads = threading.active_count()

    async def work():
        waits = asyncio.ensure_future(batch)
        await asyncio.sleep(0)
        assert threading.active_count() == threads
        assert not waits.done()
        hands.work()  # what runs meanwhile, in the very thread that waits
        return await waits

    assert run(work()) is batch
    assert (batch.done, batch.tally.finished, batch.tally.failed) == (True, 2, 1)
    assert not any(type(bar).__name__ == "_Bell" for bar in batch.ref.state.bars)
    assert run(asyncio.wait_for(batch, 5)) is batch  # what has ended needs no news


def test_a_job_gives_its_value_or_raises_what_it_raised(session, busy):
    batch, one = nbqueue.map(halve, [5, 0]), nbqueue.submit(halve, 2)

    async def both():
        return await asyncio.gather(batch[0], one, batch[1], return_exceptions=True)

    first, second, third = run(both())
    assert (first, second) == (2, 5)
    assert isinstance(third, ZeroDivisionError)
    assert "return 10 // x" in str(third.__cause__)
    inline = nbqueue.map(halve, [1], inline="collect")
    assert run(asyncio.wait_for(inline, 5)).results() == [10]


def test_who_stops_waiting_stops_nothing(session, hands, capsys):
    batch = nbqueue.map(halve, [1])
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(batch, 0.05))
    assert capsys.readouterr().err == ""
    assert batch.ref.state.bars == []
    hands.work()
    assert batch.wait(10)


def test_what_cannot_come_is_raised(session):
    batch = nbqueue.map(halve, [1])

    async def lose():
        waits = asyncio.ensure_future(batch)
        await asyncio.sleep(0)
        batch.ref.session.broker.client.unlink(*batch.ref.session.broker.client.keys(f"*b:{batch.id}*"))
        await waits

    with pytest.raises(nbqueue.NbqueueError, match=batch.id):
        run(lose())
    for key in ("open:default", "q:default", "batches"):
        session.broker.client.unlink(session.broker.keys.prefix + key)


def test_an_interrupt_ends_the_cell_at_once_and_says_how_to_go_on(session, tmp_path):
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        begin = (
            f"import nbqueue; s = nbqueue.connect({session.settings.url!r}, namespace={session.settings.namespace!r})\n"
            "from pathlib import Path; b = nbqueue.map(abs, [1], progress=False)"
        )
        assert client.execute_interactive(begin, timeout=30, output_hook=lambda _: None)["content"]["status"] == "ok"
        client.execute("import asyncio\nasyncio.get_running_loop().call_soon(Path('on').touch)\nawait b")
        wait_until((tmp_path / "on").exists, 20)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=5)["content"]["status"] == "error"
        assert f"nbqueue: stopped waiting; {nbqueue.attach().id} is still running" in _streams(client)
        # Until its error is known everywhere, the kernel drops what it is asked.
        again = "b.cancel(); s.collector.stop()"
        hook = {"timeout": 20, "output_hook": lambda _: None}
        wait_until(lambda: client.execute_interactive(again, **hook)["content"]["status"] == "ok", 20)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _streams(client):
    told = []
    while "stopped waiting" not in "".join(told):
        try:
            message = client.get_iopub_msg(timeout=10)
        except queue.Empty:
            break
        told.append(str(message["content"].get("text", "")))
    return "".join(told)


def test_what_another_session_has_retried_is_awaited(session, hands, tmp_path, other):
    mended = tmp_path / "mended"

    def work(x, path=str(mended)):
        from pathlib import Path

        return 10 // (x + Path(path).exists())

    batch = nbqueue.map(work, [0])
    hands.work()
    assert batch.wait(10)
    mended.touch()
    seen = Batch(find.attach(other, batch.id))
    assert seen.wait(10)
    seen.retry()
    hands.work()
    assert run(asyncio.wait_for(batch, 10)).results() == [10]
