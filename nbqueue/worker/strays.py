"""What a dead stable leaves behind comes to the worker's process, which ends it.

A script that calls `Worker.work()` may have children of its own, which are none of a worker's business. What carries
the mark of our stables is ours; in a process that is a worker and nothing else, so is every child that came later.
"""

from __future__ import annotations

from collections.abc import Collection

from nbqueue.worker import limits, marks, tree


class Strays:
    """Ends what the stables of one worker have left; with `alone`, the process is a worker and nothing else."""

    def __init__(self, mark: str, *, alone: bool = False) -> None:
        self._mark, self._alone = mark, alone
        self._before = frozenset(tree.children())
        self._marked: set[int] = set()  # children that carried our mark while they lived: of the dead it cannot be read

    def reap(self, stables: Collection[int]) -> None:
        """Kills and reaps all that is ours, but for the stables with these process ids."""
        self._marked.intersection_update(tree.children())
        limits.kill_strays(stables, self._ours)

    def _ours(self, pid: int) -> bool:
        if self._alone:
            return pid not in self._before
        if marks.mark_of(pid) == self._mark:
            self._marked.add(pid)
        return pid in self._marked or tree.is_dead_horse(pid)
