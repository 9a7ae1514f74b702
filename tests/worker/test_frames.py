"""Frames over a socket that is full, cut anywhere, or closed."""

from __future__ import annotations

import os
import socket

import pytest

from nbqueue.model import CallbackResult, Failure
from nbqueue.worker import frames
from nbqueue.worker.channel import Channel


@pytest.fixture
def ends():
    left, right = (Channel(end) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


def all_of(sender, receiver, count):
    found = []
    while len(found) < count:
        sender.flush()
        found += receiver.receive()
    return found


def test_frames_arrive_whole_and_in_order_though_the_socket_is_full(ends):
    left, right = ends
    sent = [(frames.DONE, bytes([number]) * size) for number, size in enumerate((0, 1, 5_000_000, 7, 300_000))]
    for kind, payload in sent:
        left.send(kind, payload)
    assert left.wants_write
    assert [(kind, payload) for kind, payload, _ in all_of(left, right, 5)] == sent
    assert not left.wants_write


def test_descriptors_come_with_their_own_frames(ends):
    left, right = ends
    for number in range(40):
        fd = None
        if number % 3 == 0:
            fd = os.memfd_create("test")
            os.write(fd, b"%d" % number)
        left.queue(frames.DONE, b"%d" % number * 10_000, fd)
    for number, (kind, payload, fd) in enumerate(all_of(left, right, 40)):
        assert (kind, payload[:2]) == (frames.DONE, (b"%d" % number * 2)[:2])
        assert (fd is not None) == (number % 3 == 0)
        if fd is not None:
            assert frames.read_value(fd) == b"%d" % number


def test_the_end_is_told_after_what_came_before(ends):
    left, right = ends
    left.send(frames.GONE, b"x")
    left.close()
    assert right.receive() == [(frames.GONE, b"x", None)]
    right.receive()
    assert right.eof
    right.send(frames.GONE, b"y")
    assert not right.wants_write


def test_an_absurd_length_is_refused_before_memory_is_taken():
    left, right = socket.socketpair()
    channel = Channel(right, limit=1000)
    left.send(frames.HEAD.pack(1001, frames.DONE))
    with pytest.raises(frames.FrameError):
        channel.receive()
    left.close()
    channel.close()


def test_frames_before_garbage_count():
    left, right = socket.socketpair()
    channel = Channel(right, limit=1000)
    left.send(frames.HEAD.pack(1, frames.DONE) + b"x" + frames.HEAD.pack(1, frames.NOTE) + b"y" + b"hello, world")
    assert channel.receive() == [(frames.DONE, b"x", None), (frames.NOTE, b"y", None)]
    assert channel.spoiled
    with pytest.raises(frames.FrameError):
        channel.receive()
    left.close()
    channel.close()


def test_a_peer_of_another_protocol_is_told_apart(monkeypatch):
    worker = frames.hello()
    assert frames.stranger(worker) == ""
    monkeypatch.setattr(frames, "PROTOCOL", 0)
    told = frames.stranger(worker)
    assert told.startswith("the notebook's interpreter has nbqueue ")
    assert "install the same version" in told


def test_payloads_come_back_as_they_were():
    assert frames.unpack_seqs(frames.pack_seqs([1, 2**60])) == [1, 2**60]
    assert frames.unpack_done(frames.pack_done(7, b"ride", b"tail")) == (7, b"ride", b"tail")
    assert frames.unpack_note(frames.pack_note(7, frames.META, b"x")) == (7, frames.META, b"x")
    assert frames.unpack_seconds(frames.pack_seconds(1.5)) == 1.5
    run = frames.Run(1, "b", "f", False, None, 2.0, 0.1, 9, None, [frames.Job(1, 2, 3, b"x")])
    assert frames.decode_run(frames.encode(run)) == run
    with pytest.raises(frames.FrameError):
        frames.decode_run(b"\x00")


def test_what_follows_a_job_survives_packing():
    run = frames.Run(
        0, "b", "f", False, 1.0, 2.0, 0.1, 10, 7, [frames.Job(3, 4, 1, b"1x", b"\x80")], hooks=("success",)
    )
    after = frames.After(run, "failure", handlers=True, failure=b"f")
    assert frames.decode_after(frames.encode(after)) == after
    assert after.seq == 3
    setup = frames.Setup(("/a",), ("b",), ("c.d",))
    assert frames.decode_setup(frames.encode(setup)) == setup
    echoes = [CallbackResult("success", "told"), CallbackResult("handler", "c.d", Failure("KeyError", "x"))]
    assert frames.unpack_echoes(frames.pack_echoes(3, echoes)) == (3, echoes)
    with pytest.raises(frames.FrameError):
        frames.unpack_echoes(bytes(8) + b"garbage")
