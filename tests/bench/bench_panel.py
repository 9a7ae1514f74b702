"""How long a redraw of the panel takes: run by hand, `python tests/bench/bench_panel.py`.

Batches of several sizes, of which 1 in 20 jobs failed, in 30 kinds; ten more end between two redraws.
"""

from __future__ import annotations

import statistics
import time

import nbqueue
from nbqueue.client.panel import html, model
from nbqueue.client.panel.failures import FailureGroups
from nbqueue.client.panel.rate import RateEstimator
from nbqueue.client.panel.widget import PanelActions, PanelWidget
from nbqueue.client.state.batch_state import BatchState
from nbqueue.client.submit import retry
from nbqueue.model import Cause, Failure, Outcome, Spec, State, Tally

SIZES = (100, 10_000, 100_000)
KINDS, EVERY, NEWS, REDRAWS = 30, 20, 10, 200
TRACE = (
    'Traceback (most recent call last):\n  File "/home/anna/study.py", line {line}, in f\n    g()\n{kind}: {index}\n'
)
FINISHED = Outcome(State.FINISHED, None, 1, 0, 0)


def outcome(index: int) -> Outcome:
    if index % EVERY:
        return FINISHED
    kind, line = f"Error{index // EVERY % KINDS}", index // EVERY % KINDS
    return Outcome(
        State.FAILED,
        Cause.ERROR,
        1,
        0,
        0,
        failure=Failure(kind, f"no page {index}", TRACE.format(kind=kind, index=index, line=line)),
    )


def redraws(n: int) -> tuple[float, list[float], list[float]]:
    """Seconds for the first look at a batch of `n`, and for each redraw of the widget and of the saved form."""
    batch = nbqueue.map(abs, [0], inline="collect", progress=False)
    batch.ref.state = state = BatchState("big", "default", "", Spec(label="f"))
    n += NEWS * REDRAWS
    failed = 0

    def end(start: int, stop: int) -> None:
        nonlocal failed
        for index in range(start, stop):
            state.put(index, outcome(index))
            failed += index % EVERY == 0
        state.tally = Tally(n=n + 1, finished=stop - failed, failed=failed, queued=n + 1 - stop)

    ended = n - NEWS * REDRAWS
    end(0, ended)
    groups, pace = FailureGroups(str), RateEstimator()
    groups.add(batch.ref)
    controls = PanelWidget("ab12", PanelActions([batch.ref], groups, retry.again))
    began = time.perf_counter()
    while not groups.update():
        pass
    first, live, saved = time.perf_counter() - began, [], []
    for _ in range(REDRAWS):
        end(ended, ended + NEWS)
        ended += NEWS
        began = time.perf_counter()
        groups.update()
        seen = model.snapshot([batch.ref], pace, groups, ())
        controls.show(seen)
        live.append(time.perf_counter() - began)
        began = time.perf_counter()
        html.static(seen)
        saved.append(time.perf_counter() - began)
    return first, live, saved


def main() -> None:
    for n in SIZES:
        first, live, saved = redraws(n)
        print(
            f"{n:>7,} jobs, {n // EVERY:,} failed: first look {first * 1e3:.0f} ms, a redraw"
            f" {statistics.median(live) * 1e3:.2f} ms (most {max(live) * 1e3:.1f}),"
            f" its saved form {statistics.median(saved) * 1e3:.2f} ms more"
        )


if __name__ == "__main__":
    main()
