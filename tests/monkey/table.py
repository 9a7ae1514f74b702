"""What happened, as a table of plain text."""

import itertools
from collections import Counter, defaultdict


def show(stage, story, verdict, sampler, seconds):
    """All lines."""
    lines = [*_faults(story), *_flows(story), *_runs(verdict), *_memory(stage), ""]
    lines.append(f"clients     refused {dict(Counter(story.refused))}, lost by the server {len(story.lost)}")
    lines.append(f"explained   {dict(verdict.explained) or 'no end was unforeseen'}")
    lines.append(f"canceled    {story.cancels} jobs by users")
    lines.append(f"second look {len(story.second)} batches of one client, read by the other from the store")
    lines.append(f"samples     {sampler.looks} of tallies and outcomes while it happened")
    lines.append(f"replies     {sum(line.lost for line in stage.lines)} were lost on purpose")
    if stage.server.losses:
        lines.append(f"server      {stage.server.losses} bytes of its file went with the power")
    lines.append(f"time        {seconds:.0f} s of faults, then {story.drained:.1f} s until all was over")
    return "\n".join(lines)


def _faults(story):
    yield "fault             times"
    for what, number in sorted(story.faults.items()):
        yield f"{what:16} {number:6}"


def _flows(story):
    columns = defaultdict(Counter)
    for report in story.reports.values():
        columns[report["kind"]].update(report["counts"])
        columns[report["kind"]]["jobs"] += report["n"]
        columns[report["kind"]]["batches"] += 1
    yield ""
    yield "flow        batches   jobs  finished  ended otherwise"
    total = Counter()
    for kind, counts in sorted(columns.items()):
        total.update(counts)
        yield _row(kind, counts)
    yield _row("all", total)


def _row(kind, counts):
    counts = dict(counts)
    batches, jobs, finished = (counts.pop(name, 0) for name in ("batches", "jobs", "finished"))
    rest = ", ".join(f"{word} {number}" for word, number in sorted(counts.items()))
    return f"{kind:10} {batches:8} {jobs:6} {finished:9}  {rest}"


def _runs(verdict):
    lives = verdict.lives
    begun = sum(len(runs) for runs in lives.values())
    ended = sum(run.end is not None for runs in lives.values() for run in runs)
    waits = [
        (after.begin - before.last, job)
        for job, runs in lives.items()
        for before, after in itertools.pairwise(runs)
        if before.end is None
    ]
    again = sum(len(runs) > 1 for runs in lives.values())
    yield ""
    yield f"runs        {begun} begun, {ended} to their end, of {len(lives)} jobs; {again} jobs ran more than once"
    if waits:
        kinds = {part["id"]: part["kind"] for parts in verdict.story.parts.values() for part in parts}
        top = [f"{wait:.1f} s ({kinds.get(batch, '?')} {batch}:{row})" for wait, (batch, row) in sorted(waits)[-3:]]
        yield f"reruns      {len(waits)} after a run that was cut off; the longest waits: {', '.join(top[::-1])}"


def _memory(stage):
    known = [worker for worker in stage.workers() if len(worker.sizes) > 1]
    if not known:
        return
    oldest = max(known, key=lambda worker: len(worker.sizes))
    grown = max(known, key=lambda worker: worker.sizes[-1][0] - worker.sizes[0][0])
    for word, worker in (("oldest", oldest), ("grown most", grown)):
        (first, first_all), (last, last_all) = worker.sizes[0], worker.sizes[-1]
        age = 3 * len(worker.sizes)
        text = f"{first:.0f} -> {last:.0f} MB, with what runs below it {first_all:.0f} -> {last_all:.0f} MB"
        yield f"memory      worker {worker.pid} ({word}, {age} s): {text}"
