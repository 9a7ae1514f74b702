"""Every exception of nbqueue.

The docstring of a class is its message: the names in braces are the facts that it is raised with, and the last sentence
says what to do next.

    NbqueueError
      SetupError            NoServer  NoServerProgram  WrongPassword  ServerUnfit  ServerRefused  BadSecret
      BadInput              BadName  BadOption  BadItems  NotPicklable  TooLarge  SpillFailed  InUse
                            Changed  NoSuchDependency  InsideJob  TooManyOpen
      BadSignature          UnknownKey  Damaged
      NotThere              NoSuchBatch  NoSuchJob  NoSuchWorker  Expired  LostByServer  SpillLost
      JobFailed  JobCanceled  BatchFailed  CannotOpen  NotDone
      LeaseEnded            (a worker's own)
      LoadError             CodeDiffers (a forkserver's own)
    RemoteTraceback         (the cause of a job's exception)
    JobTimeout              (a BaseException, raised inside a job)
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any

_INSIDE = ("nbqueue.", "contextlib.", "functools.")  # modules whose lines in a traceback do not help a user
_TWO_STOPS = re.compile(r"(?<=[^\s.])\.\.(?=\s|$)")  # a fact that ends with a full stop


class NbqueueError(Exception):
    """{message}"""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        text = " ".join((type(self).__doc__ or "").split()).format(**facts)
        super().__init__(_TWO_STOPS.sub(".", text))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts)

    def _render_traceback_(self) -> list[str]:
        """The traceback that IPython shows: the user's lines only. `%debug` and logs have all of it."""
        from IPython import get_ipython

        shown = get_ipython().InteractiveTB
        steps, step = [], self.__traceback__
        while step is not None:
            if not f"{step.tb_frame.f_globals.get('__name__')}.".startswith(_INSIDE):
                steps.append(step)
            step = step.tb_next
        trace = None
        for step in reversed(steps):
            trace = TracebackType(trace, step.tb_frame, step.tb_lasti, step.tb_lineno)
        cause, context = self.__cause__, self.__context__
        try:
            if isinstance(self, BadInput | SetupError):  # the message is enough
                self.__cause__ = self.__context__ = None
            lines: list[str] = shown.structured_traceback(type(self), self, trace, tb_offset=1)
        finally:
            self.__context__, self.__cause__ = context, cause
        return lines


def _rebuild(cls: type[NbqueueError], facts: dict[str, Any]) -> NbqueueError:
    return cls(**facts)


# ---------------------------------------------------------------- setting up


class SetupError(NbqueueError):
    """{message}"""

    @property
    def kind(self) -> str:
        """The server's error code (OOM, LOADING), or the name of the class."""
        return str(self.facts.get("kind") or type(self).__name__)


class NoServer(SetupError, ConnectionError):
    """No Redis server answers at {url} ({why}). {remedy}"""


class NoServerProgram(SetupError):
    """There is no Redis or Valkey server program on this machine, and no server is configured. Run
    `pip install 'nbqueue[server]'` for a private one, or name a running one: `nbqueue.connect("redis://host:6379")`."""


class WrongPassword(SetupError):
    """The server at {url} refused the password or user name ({why}). Write it into the URL, as
    redis://user:password@host:6379, or into NBQUEUE_URL."""


class ServerUnfit(SetupError):
    """The server at {url} cannot be used: {why}. {remedy}"""


class ServerRefused(SetupError):
    """The server refused a command for the moment: {why}. {remedy}"""


class BadSecret(SetupError):
    """The secret in {path} cannot be used: {why}. {remedy}"""


# ---------------------------------------------------------------- input


class BadInput(NbqueueError):
    """{message}"""


class BadName(BadInput, ValueError):
    """{what} {name} cannot be used: it must be 1 to 100 letters, digits{spaces} or any of `_ . @ + -`, and begin with a
    letter, digit or underscore."""


class BadOption(BadInput, TypeError, ValueError):
    """{message}"""


class BadItems(BadInput, TypeError, ValueError):
    """{message}"""


class NotPicklable(BadInput, TypeError):
    """{what} cannot be sent to another process: {why}. {remedy}"""


class TooLarge(BadInput, ValueError):
    """{what} is too large: over {limit}. {remedy}"""


class SpillFailed(TooLarge):
    """{what} cannot be spilled to {folder}: {why}. {remedy}"""


class TooManyOpen(BadInput, RuntimeError):
    """The queue {queue!r} on {server} holds {limit:,} unfinished batches, as many as `max_open` allows: this one was
    not submitted. Submit many calls as one batch, with `nbqueue.map(f, items)` instead of a loop of `enqueue` or
    `submit`; cancel jobs with `nbqueue empty {queue}` or `batch.cancel()`; or raise NBQUEUE_MAX_OPEN."""


class InUse(BadInput, ValueError):
    """The {what} {name!r} is in use by another job or batch. Choose another one, open that one with
    `nbqueue.attach({name!r})`, or remove it with `nbqueue.attach({name!r}).forget()`."""


class Changed(BadInput, ValueError):
    """Batch {name!r} exists, but {what}. Nothing was submitted. fresh=True: run all jobs again (the old batch is
    renamed {name}@1). update=True: keep the old results, and run only the rest."""


class NoSuchDependency(BadInput, LookupError):
    """The dependency {name!r} is not on {server}: it was never submitted there, or it has expired. Nothing was
    submitted. Submit the dependency first, and pass its Job or id."""


class InsideJob(BadInput, RuntimeError):
    """`{verb}` was called inside a job. A job cannot submit work: return what should run next, and submit it from the
    notebook. (In a script or module that the job imports, keep such calls under `if __name__ == "__main__":`.)"""


# ---------------------------------------------------------------- data read from the server


class BadSignature(NbqueueError):
    """{what} has no valid signature, so it was not unpickled: {why}. It was written by someone without the secret,
    or it was damaged."""


class UnknownKey(BadSignature):
    """{what} was signed with key {key}, which is not in {path}. Add the secret of the user who signed it to that file,
    as one more line."""


class Damaged(BadSignature):
    """{what} is not as nbqueue wrote it: {why}. Another program has written there, or it was damaged. Everything else
    on the server is unchanged."""


class NotThere(NbqueueError, LookupError):
    """{message}"""


class NoSuchBatch(NotThere):
    """There is no batch {name!r} on {server}. `nbqueue batches`, or `nbqueue.batches()`, lists all batches."""


class NoBatchAtAll(NoSuchBatch):
    """There is no batch of yours on {server}. If it should be on another server: `nbqueue.connect(url)`."""


class NoSuchJob(NotThere):
    """There is no job {name!r} on {server}{hint}."""


class NoSuchWorker(NotThere):
    """There is no live worker {name!r} on {server}. `nbqueue info` lists all workers."""


class Expired(NotThere):
    """{what} is no longer there: it has expired (results are kept for {ttl} after the end; `result_ttl=` sets another
    time), or it was deleted."""


class LostByServer(NotThere):
    """The server at {server} has lost {what}: it was restarted without its data, or flushed, or the data were deleted.
    Results that were collected here are kept. The rest must run again: `batch.retry()` restores the batch from its copy
    in the spool and does so; without a copy, submit it again."""


class SpillLost(NotThere):
    """{size} of results are in {file}, which cannot be read: {why}. If this machine has that folder under another path,
    name it with NBQUEUE_SPILL; a lost result must run again: `batch.retry(row)`."""


# ---------------------------------------------------------------- outcomes of jobs and batches


class JobFailed(NbqueueError):
    """Job {job} failed ({cause}): {error}"""


class JobCanceled(NbqueueError):
    """Job {job} was canceled ({cause}), so it has no result. {remedy}"""


class BatchFailed(NbqueueError):
    """{failed} of {n} jobs of {batch} {what}. The first is {job}: {error}. {remedy},
    `batch.results(errors="skip")` leaves them out."""


class CannotOpen(NbqueueError):
    """{what} cannot be unpickled here: {why}. Install or import what it needs, or return plain data: numbers, text,
    lists, dicts, arrays, frames."""


class NotDone(NbqueueError, TimeoutError):
    """{what} is not done after {seconds:g} s: {tally}. {now}; wait again, or call `.cancel()`."""


class RemoteTraceback(Exception):
    """The traceback of a job's exception as text, where it was raised; the `__cause__` of the exception itself."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f"\n{self.text}"


# ---------------------------------------------------------------- inside a worker


class LeaseEnded(NbqueueError):
    """The lease of worker {worker} has expired, and its jobs were re-queued. It stops them and joins under a new id."""


class LoadError(NbqueueError):
    """{label} could not be loaded on {host}: {why}"""


class CodeDiffers(LoadError):
    """{label} could not be loaded on {host}: {why} The job waits for a worker with that code. To run it with the code
    that workers have: nbqueue.attach(ID).cancel() and .retry(func=...), or submit it with pin=False."""


class JobTimeout(BaseException):
    """Raised inside a job at its time limit. A BaseException, so that `except Exception` does not swallow it.

    A job may catch it to clean up; it is killed after the grace period (2 s, or `grace=`).
    """
