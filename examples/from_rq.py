"""The walk that RQ's users know, on nbqueue.

    python examples/from_rq.py redis://localhost:6379

Queue, named queue, result, meta, dependencies, decorator, failed jobs, SimpleWorker. The functions stand in this very
script; the workers run here too, in burst mode, where one would otherwise run `nbqueue worker high default low`.
"""

import sys

from redis import Redis

import nbqueue
from nbqueue import Queue, SimpleWorker, Worker, get_current_job, job


def count_words(text):
    return len(text.split())


def resize(image, width):
    current = get_current_job()
    current.meta["width"] = width
    current.save_meta()
    return f"{image} at {width}"


def total(numbers):
    return sum(numbers)


def divide(a, b):
    return a / b


def first_steps(q, connection):
    # A queue, a job, a worker, a result.
    words = q.enqueue(count_words, "to be or not to be")
    print(f"{words.id}: {words.get_status()}, {len(q)} in the queue, result {words.result}")
    Worker([q], connection=connection).work(burst=True)
    print(f"{words.id}: {words.get_status()}, result {words.result}")

    # Named queues, options among the keywords, meta.
    low = Queue("low", connection=connection)
    picture = low.enqueue(resize, "cat.png", width=64, timeout=600, result_ttl=3600, meta={"user": "anna"})
    Worker(["high", "default", "low"], connection=connection).work(burst=True)
    print(f"{picture.result}, {picture.meta}")

    # Dependencies: one job after others.
    first = q.enqueue(count_words, "one two", job_id="first")
    last = q.enqueue(total, [1, 2, 3], depends_on=[first, words])
    print(f"{last.get_status()} until {first.id} has finished")
    Worker([q], connection=connection).work(burst=True)
    print(f"then {last.get_status()}: {last.result}")


def more_steps(q, connection):
    # The decorator.
    @job("low", connection=connection, timeout=5)
    def add(x, y):
        return x + y

    sums = [add.delay(x, 2) for x in range(3)]
    Worker(["low"], connection=connection).work(burst=True)
    print(nbqueue.gather(sums)[["x", "y", "result"]].to_string())

    # Failed jobs: look, and run them again.
    wrong = q.enqueue(divide, 1, 0)
    Worker([q], connection=connection).work(burst=True)
    print(q.failed)
    print(f"{q.failed.requeue()} runs again")
    Worker([q], connection=connection).work(burst=True)
    print(f"{wrong.id} {wrong.get_status()}: {type(wrong.exception()).__name__}")

    # In tests: a worker that runs jobs in this very process.
    here = q.enqueue(count_words, "no process is forked")
    SimpleWorker([q], connection=connection).work(burst=True)
    print(f"{here.result} words")


if __name__ == "__main__":
    redis = Redis.from_url(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379")
    queue = Queue(connection=redis)
    first_steps(queue, redis)
    more_steps(queue, redis)
