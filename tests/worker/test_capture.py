"""What jobs print: by job, in order, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stable_driver import Driver

from nbqueue.model import State
from nbqueue.worker import capture


def test_output_belongs_to_its_job_down_to_child_processes():
    def f(x):
        print("out", x, end=" ")
        print("err", x, file=sys.stderr)
        os.write(1, b"raw\n")
        subprocess.run(["echo", f"child {x}"])
        print("last", x)

    with Driver(f) as driver:
        seqs = driver.run(1, 2, 3)
        driver.outcomes(seqs)
    for seq, x in zip(seqs, (1, 2, 3), strict=True):
        assert driver.tails[seq].decode() == f"out {x} err {x}\nraw\nchild {x}\nlast {x}\n"


def test_a_finished_job_keeps_4_kb_and_a_failed_one_64_kb():
    def f(fails):
        for number in range(20_000):
            print("line", number)
        return 1 / fails

    with Driver(f) as driver:
        seqs = []
        for argument in (1, 0):  # one by one: behind a call that outlasts its slice, others would come back
            seqs += driver.run(argument)
            driver.outcomes(seqs)
    for seq, limit in zip(seqs, (4_096, 65_536), strict=True):
        tail = driver.tails[seq]
        assert limit - 20 < len(tail) <= limit
        assert tail.startswith(b"line ")
        assert tail.endswith(b"line 19999\n")


def test_a_flood_is_drained_and_does_not_fill_memory():
    def f(_):
        chunk = b"x" * (1 << 16)
        for _ in range((1 << 30) // len(chunk)):
            os.write(1, chunk)

    with Driver(f) as driver:
        ride = driver.outcome(seconds=30)
        peak = int(Path(f"/proc/{driver.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
    assert ride.state is State.FINISHED
    assert peak < 100_000


def test_the_last_words_of_a_crash_are_kept():
    def f(_):
        print("before the end")
        os.abort()

    with Driver(f) as driver:
        (seq,) = driver.run(0)
        driver.outcomes([seq])
    assert driver.tails[seq].startswith(b"before the end\n")


def test_shorten_keeps_whole_lines_but_not_at_any_price():
    assert capture.shorten(b"ab\ncd\n", 10) == b"ab\ncd\n"
    assert capture.shorten(b"ab\ncd\nef\n", 5) == b"ef\n"
    assert capture.shorten(b"x" * 100, 5) == b"xxxxx"


def test_a_mark_is_found_wherever_it_is_cut():
    mark = bytes(range(16))
    for size in (1, 3, 7, 16, 100):
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        output = capture.Output(reading, mark)
        data = b"one" + mark + mark + b"three" + mark + b"rest"
        for start in range(0, len(data), size):
            os.write(writing, data[start : start + size])
            output.read()
        assert [output.take() for _ in range(3)] == [b"one", b"", b"three"]
        assert output.last() == b"rest"
        output.close()
        os.close(writing)


def test_a_tail_is_cut_at_a_line_also_where_nothing_came_after_it_was_shortened():
    read, write = os.pipe()
    output = capture.Output(read, b"0123456789abcdef")
    output._split(b"line 12345\n" * 20_000 + b"0123456789abcdef")
    assert capture.tail_for(output.take(), failed=True).startswith(b"line 12345\n")
    output.close()
    os.close(write)
