"""The queue as RQ's users know it: keywords, defaults, listings, and what each costs in round trips."""

from __future__ import annotations

import inspect
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
import redis
from helpers import wait_until

import nbqueue
from nbqueue import Callback, Dependency, Queue
from nbqueue.checks import YEAR
from nbqueue.client.lookup import spooled
from nbqueue.errors import BadInput, BadItems, BadName, BadOption, InsideJob, InUse, NoSuchJob, NotPicklable
from nbqueue.model import State


def add(x, y=1, **rest):
    return x + y


def clash(x, timeout=None):
    return x, timeout


def explicit(args, kwargs):
    return args, kwargs


def report(job, connection, result):
    return "reported"


def boom(x):
    raise ValueError(x)


@pytest.fixture
def quiet(session, monkeypatch):
    """No collector: all that the server hears is what the test does."""
    session.collector.stop()
    monkeypatch.setattr(session.collector, "follow", lambda state: None)
    return session


def trips(session, action):
    """The commands that `action` sends, a list for each round trip; scripts' own calls do not count."""
    client = session.broker.client
    with client.monitor() as monitor:
        client.echo("begin")
        heard = monitor.listen()
        next(one for one in heard if one["command"] == "ECHO begin")
        action()
        client.echo("end")
        seen = []
        for one in heard:
            if one["command"] == "ECHO end":
                return seen
            if one["client_type"] != "lua":
                seen.append(one["command"].split()[0])
    raise AssertionError("unreachable")


def test_the_repr_of_a_failed_job_says_what_went_wrong(q, hands):
    job = q.enqueue(boom, "a\n" * 100)
    assert repr(job) == f"<Job {job.id}: not done>"
    hands.work()
    assert job.exception(5) is not None
    assert repr(job).startswith(f"<Job {job.id}: failed, ValueError: a a a")
    assert len(repr(job)) < 200
    fine = q.enqueue(add, 1)
    hands.work()
    assert fine.wait(5) == 2
    assert repr(fine) == f"<Job {fine.id}: finished>"


def test_a_job_tells_its_callbacks(q, hands):
    job = q.enqueue(add, 1, on_success=print, on_failure=Callback("os.path.join"), ttl=60)
    found = nbqueue.Job.fetch(job.id)
    assert (found.success_callback, found.failure_callback, found.stopped_callback) == (print, os.path.join, None)
    assert 0 < found.get_ttl() <= 60
    here = Queue(is_async=False).enqueue(add, 1, on_success=report)
    assert here.success_callback(None, None, 1) == "reported"  # it has been pickled: the same, and another object
    assert here.failure_callback is None
    made = nbqueue.Job.create(add, (1,), on_success=Callback(print), on_stopped="os.path.join")
    assert (made.success_callback, made.failure_callback, made.stopped_callback) == (print, None, os.path.join)
    job.cancel()


def test_a_dependency_that_names_no_job_is_refused_as_it_is_made(q, session):
    job = q.enqueue(add, 1)
    for wrong in (1, [job, 1], None):
        with pytest.raises(BadOption, match="names no job"):
            Dependency(wrong)
    assert Dependency([job, job.id, [job]]).jobs == (job, job.id, [job])
    job.cancel()


def test_one_enqueue_is_one_round_trip(q, quiet):
    q.enqueue(add, 0)
    first = q.enqueue(add, 1, job_id="first")
    assert trips(quiet, lambda: q.enqueue(add, 1, meta={"a": 1}, retries=3)) == ["EVALSHA"]
    assert trips(quiet, lambda: q.enqueue_in(60, add, 1, depends_on=first, on_success=print)) == ["EVALSHA"]
    first.cancel()
    q.empty()


def test_a_thousand_jobs_are_listed_in_three_round_trips_at_most(q, quiet):
    made = q.enqueue_many([Queue.prepare_data(add, (place,)) for place in range(1000)])
    found = []
    assert len(trips(quiet, lambda: found.append(q.jobs))) <= 3
    assert list(found[0]) == made
    assert len(trips(quiet, lambda: found.append((len(q), q.job_ids)))) <= 5  # len: three in one pipeline
    assert found[1] == (1000, [job.id for job in made])
    assert trips(quiet, lambda: q.fetch_job(made[7].id)) == ["TIME", "HMGET", "LLEN"]  # one pipeline
    assert q.empty() == 1000


def test_many_jobs_are_fetched_in_a_round_trip_for_each_thousand(q, quiet):
    made = q.enqueue_many([Queue.prepare_data(add, (place,)) for place in range(1500)])
    batch = nbqueue.map(add, [1, 2], queue="low", name="both", progress=False)
    ids = [*(job.id for job in made), "nothing", batch[1].id, "both:0"]
    found = []
    heard = trips(quiet, lambda: found.extend(nbqueue.Job.fetch_many(ids)))
    assert found == [*made, None, batch[1], batch[0]]
    by_name = ["HGETALL", "TIME", "HMGET", "LLEN"]
    assert heard == ["TIME", *["HMGET", "LLEN"] * 1000, "TIME", *["HMGET", "LLEN"] * 503, *by_name]
    assert q.empty() == 1502


# ---------------------------------------------------------------- keywords


def test_options_stand_among_the_keywords_as_in_rq(q):
    job = q.enqueue(
        add, 1, y=2, z=3, timeout="3m", result_ttl=-1, ttl=60, failure_ttl=5, job_id="x", meta={"a": 1}, retries=2
    )  # fmt: skip
    assert (job.args, job.kwargs) == ((1,), {"y": 2, "z": 3})
    spec = job.batch.spec
    assert (job.id, spec.timeout, spec.timeout_from, spec.result_ttl, spec.failure_ttl) == ("x", 180, "", YEAR, 5)
    assert spec.retry.times == 2
    assert q.enqueue(add, 1, job_timeout=600).timeout == 600
    assert q.enqueue(add, 1, job_timeout=-1).timeout is None
    assert q.enqueue(add, args=(1,), kwargs={"timeout": 5}, timeout=6).kwargs == {"timeout": 5}
    assert q.enqueue_call(add, (1,), {"y": 5}, timeout=6).timeout == 6
    assert q.options(timeout=7).enqueue(add, 1, job_id=3, meta=4).kwargs == {"job_id": 3, "meta": 4}
    assert q.enqueue("os.path.basename", "/a/b").func_name == "basename"
    q.empty()


def test_defaults_are_rqs(q, session):
    spec = q.enqueue(add, 1, timeout=None).batch.spec
    assert (spec.timeout, spec.timeout_from, spec.result_ttl) == (180, "Queue.enqueue's default", 500)
    assert q.options(timeout=None).enqueue(add, 1).timeout is None
    short = Queue("low", default_timeout="5m")
    spec = short.enqueue(add, 1).batch.spec
    assert (spec.timeout, spec.timeout_from) == (300, "the default of Queue('low')")
    plain = nbqueue.options(queue="low").submit(add, 1).batch.spec
    assert (plain.timeout, plain.result_ttl) == (None, 7 * 86_400)
    q.empty()


def test_an_option_that_the_function_has_too_names_the_way_out(q):
    with pytest.raises(BadOption, match=r"parameter of clash.*q.options\(timeout=3\).enqueue\(clash"):
        q.enqueue(clash, 1, timeout=3)
    with pytest.raises(BadOption, match=r"parameter of clash"):
        q.enqueue(clash, 1, timeout="not a duration")
    with pytest.raises(BadOption, match=r"q.options\(\).enqueue_in\(clash, ..., timeout=3\)"):
        q.enqueue_in(5, clash, 1, timeout=3)
    with pytest.raises(BadOption, match=r"q.options\(\).enqueue\(explicit, args"):
        q.enqueue(explicit, args=(1,), kwargs={"kwargs": 2})
    assert q.options(timeout=9).enqueue(clash, 1, timeout=3).kwargs == {"timeout": 3}
    assert q.options().enqueue(explicit, args=1, kwargs=2).kwargs == {"args": 1, "kwargs": 2}
    q.empty()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"timeout": "soon"}, "not a duration"),
        ({"timeout": 0}, "over 0"),
        ({"timeout": 3, "job_timeout": 4}, "mean the same"),
        ({"retry": 1, "retries": 1}, "mean the same"),
        ({"retry": "often"}, "Retry"),
        ({"retry": 2**70}, "whole number from 1 to"),
        ({"repeat": 3}, "Repeat"),
        ({"on_success": 5}, "Callback"),
        ({"on_success": lambda job: None}, "cannot be called as"),
        ({"on_failure": lambda job, connection: None}, "cannot be called as"),
        ({"depends_on": 17}, "names no job"),
        ({"depends_on": "a b"}, "cannot be used"),
        ({"depends_on": "x:y"}, "not a job id"),
        ({"job_id": "a b"}, "cannot be used"),
        ({"job_id": "<b>"}, "cannot be used"),
        ({"meta": {1: 2}}, "strings as keys"),
        ({"meta": {"a": object()}}, "meta takes numbers"),
        ({"ttl": "x"}, "not a duration"),
        ({"unique": 1}, "True or False"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_sent(q, session, options, told):
    with pytest.raises((BadOption, BadInput), match=told):
        q.enqueue(add, 1, **options)
    with pytest.raises((BadOption, BadInput), match=told):
        q.options(**options).enqueue(add, 1)
    assert session.broker.batches() == []


def test_more_that_is_refused(q, session):
    for name in ("nothing", "os.path.nothing", ""):
        with pytest.raises(BadInput):
            q.enqueue(name, 1)
    with pytest.raises(BadItems, match="cannot take these arguments: missing"):
        q.enqueue(add)
    with pytest.raises(NotPicklable, match=r"^The argument 'x' of add cannot be sent"):
        q.enqueue(add, (each for each in ()))
    with pytest.raises(BadInput, match=r"Queue\(connection="):
        Queue(redis.Redis())
    with pytest.raises(BadName):
        Queue("a\nb")
    with pytest.raises(BadInput, match=r"redis\.Redis"):
        Queue("low", connection=17)
    with pytest.raises(BadOption, match="enqueue_in"):
        q.enqueue_at(5, add, 1)
    with pytest.raises(BadOption, match="knows no such time"):
        q.enqueue_at(datetime.min, add, 1)  # noqa: DTZ901 - that it has none is the point
    with pytest.raises(BadOption, match="not a duration"):
        q.enqueue_in("soon", add, 1)
    with pytest.raises(BadOption, match="queue='high'"):
        q.options(queue="high")
    with pytest.raises(BadOption, match="prepare_data"):
        q.enqueue_many([add])
    for verb, options in (("map", {"job_id": "x"}), ("map", {"unique": True}), ("map", {"repeat": nbqueue.Repeat(2)})):
        with pytest.raises(BadOption, match="is for one call"):
            getattr(nbqueue, verb)(add, [1], **options)
    with nbqueue.current.inside("x:1", None, 1), pytest.raises(InsideJob, match=r"Queue\.enqueue"):
        q.enqueue(add, 1)
    assert session.broker.batches() == []


def test_an_id_in_use_is_an_error_and_the_first_job_stays_as_it_is(q):
    first = q.enqueue(add, 1, job_id="x")
    with pytest.raises(InUse, match="'x' is in use"):
        q.enqueue(add, 2, job_id="x")
    assert q.fetch_job("x").args == (1,)
    first.delete()
    assert q.fetch_job("x") is None
    assert q.enqueue(add, 2, job_id="x").args == (2,)
    q.empty()


def test_unique_is_made_of_function_and_arguments(q):
    job = q.enqueue(add, 1, unique=True)
    assert job.id.startswith("add-")
    with pytest.raises(InUse):
        q.enqueue(add, 1, unique=True)
    assert q.enqueue(add, 2, unique=True) != job
    q.empty()


def test_many_are_enqueued_in_order_and_nothing_where_one_is_wrong(q):
    jobs = q.enqueue_many(Queue.prepare_data(f, (1,), job_id=name) for f, name in ((add, "a"), (boom, "b")))
    assert [job.id for job in jobs] == q.job_ids == ["a", "b"]
    assert [job.func_name for job in q.jobs] == ["add", "boom"]
    with pytest.raises(BadOption):
        q.enqueue_many([Queue.prepare_data(add, (1,)), Queue.prepare_data(add, (1,), timeout="x")])
    assert len(q) == 2
    with pytest.raises(InUse):
        q.enqueue_many([Queue.prepare_data(add, (1,), job_id="a"), Queue.prepare_data(add, (2,), job_id="c")])
    assert q.job_ids == ["a", "b", "c"]
    with pytest.raises(BadOption, match="job_id='d' is given more than once"):
        q.enqueue_many([Queue.prepare_data(add, (1,), job_id="d")] * 2)
    assert q.job_ids == ["a", "b", "c"]
    q.empty()


# ---------------------------------------------------------------- looking


def test_positions_follow_the_order_of_claims(q):
    one, two, front = q.enqueue(add, 1), q.enqueue(add, 2), q.enqueue(add, 3, at_front=True)
    assert q.job_ids == [front.id, one.id, two.id]
    assert [q.get_position(job) for job in (front, one, two.id)] == [0, 1, 2]
    assert two.get_position() == 2
    assert q.get_job_ids(1, 1) == [one.id]
    assert q.get_position("nothing") is None
    assert q.remove(one)
    assert one.get_position() is None
    assert (len(q), q.count, q.is_empty(), bool(q)) == (2, 2, False, True)
    assert q.empty() == 2
    assert (len(q), q.is_empty(), bool(q)) == (0, True, True)
    assert {job.status for job in (one, two, front)} == {State.CANCELED}
    assert {job.cause for job in q.canceled} == {"user"}
    assert q.canceled.requeue() == 3  # by handles that nobody follows
    assert q.fetch_job(one.id).status == State.QUEUED
    assert q.empty() == 3
    assert q.fetch_job(two.id).requeue().status == State.QUEUED
    assert q.empty() == 1


def test_jobs_are_fetched_by_id_on_their_own_queue(q, session):
    batch = nbqueue.map(add, [1, 2], queue="low")
    assert q.fetch_job(batch[1].id) == batch[1]
    assert Queue("high").fetch_job(batch[1].id) is None
    assert q.fetch_job(f"{batch.id}:2") is None
    assert q.fetch_job(batch.id) is None  # a batch is no job
    with pytest.raises(NoSuchJob, match="nothing"):
        nbqueue.Job.fetch("nothing")
    assert nbqueue.Job.exists(batch[0].id)
    assert nbqueue.Job.fetch_many(["nothing", batch[0].id]) == [None, batch[0]]
    with pytest.raises(BadName):
        nbqueue.Job.fetch("<b>")
    batch.cancel()


def test_a_job_is_looked_at_by_another_session_without_waiting(q, session, hands, server):
    job = q.enqueue(add, 1, y=2, description="a sum")
    other = Queue("low", redis.Redis.from_url(server.url), namespace=session.settings.namespace)
    assert other == Queue("low", redis.Redis.from_url(server.url), namespace=session.settings.namespace)
    seen = other.fetch_job(job.id)
    assert (seen.result, seen.return_value(), seen.status, seen.description) == (None, None, "queued", "a sum")
    hands.work()
    assert (seen.result, seen.status, seen.log) == (3, "finished", "said something\n")
    assert seen.created_at <= seen.enqueued_at <= seen.started_at <= seen.ended_at
    assert seen.call_string == "add(1, y=2)"
    assert (other.finished[0], list(other.failed)) == (job, [])
    wait_until(lambda: job.result == 3)
    other.session.collector.stop()
    other.session.disconnect()


def test_a_job_of_a_named_batch_is_found_by_the_name(session, hands, monkeypatch):
    monkeypatch.setattr(spooled, "quietly", lambda *_: None)  # nothing of this disk answers
    batch = nbqueue.map(len, ["a", "bc"], name="lengths", queue="low")
    hands.work()
    assert batch.wait(10)
    assert nbqueue.Job.fetch("lengths:1") == batch[1]
    assert nbqueue.Job.fetch("lengths:1").result == 2
    with pytest.raises(NoSuchJob):
        nbqueue.Job.fetch("widths:1")


def test_states_are_listed(q, session, hands):
    bad, good = q.enqueue(boom, 1), q.enqueue(add, 1)
    hands.work()
    later = q.enqueue_in("5m", add, 1)
    after = q.enqueue(add, 1, depends_on=later)
    many = nbqueue.map(boom, [1, 2], queue="low")
    hands.work(1)
    many[1].cancel()
    assert (list(q.finished), list(q.scheduled), list(q.deferred)) == ([good], [later], [after])
    assert set(q.failed) == {bad, many[0]}
    assert (list(q.canceled), list(q.started), list(q.jobs)) == ([many[1]], [], [])
    assert "ValueError: 1" in repr(q.failed)
    assert repr(q.started) == "no running jobs in low"
    assert q.failed.requeue() == 2
    assert set(q.jobs) == {bad, many[0]}
    hands.work()
    assert q.requeue([bad, many[0].id]) == 2
    assert q.empty() == 2
    assert (list(q.scheduled), list(q.deferred)) == ([later], [after])
    with pytest.raises(BadInput, match="has not ended"):
        q.requeue(later)
    later.cancel()
    assert after.cause == "dependency"


def test_a_queues_frame_shows_every_job_and_opens_none(q, session, hands, monkeypatch):
    q.enqueue(boom, 1, job_id="bad", meta={"user": "anna"})
    q.enqueue(add, 1, job_id="good")
    hands.work()
    q.enqueue_in(60, add, 1, job_id="later", description="in a minute")
    nbqueue.map(add, [1, 2], queue="low", name="many")
    with monkeypatch.context() as patch:
        patch.setattr("nbqueue.wire.loads", None)
        found = q.to_frame()
        bad = q.fetch_job("bad")
        told = (repr(q.failed), repr(q.jobs), bad.status, bad.error, bad.exc_info, bad.description, bad.meta, bad.cause)
        assert all(told), told
        assert Queue("none").to_frame().empty
    assert found["status"].tolist() == ["queued", "queued", "scheduled", "finished", "failed"]
    assert found["job_id"].tolist()[2:] == ["later", "good", "bad"]
    assert found["description"][2] == "in a minute"
    assert found["error"][4] == "ValueError: 1"
    assert found["meta"][4] == {"user": "anna"}
    assert found["enqueued_at"].isna().tolist() == [False, False, True, False, False]
    assert str(found["ended_at"].dtype) == "datetime64[us, UTC]"
    q.empty()
    q.fetch_job("later").cancel()


def test_times_without_a_zone_are_local(q):
    when = datetime.now() + timedelta(hours=1)  # noqa: DTZ005 - that is the point
    naive, aware = q.enqueue_at(when, add, 1), q.enqueue_at(when.astimezone(UTC), add, 1)
    assert abs(naive.due_at - when.astimezone(UTC)) < timedelta(milliseconds=1)
    assert naive.due_at == aware.due_at
    soon = q.enqueue_in(timedelta(minutes=5), add, 1, timeout=7)
    assert (soon.status, soon.timeout, soon.enqueued_at) == ("scheduled", 7, None)
    for job in (naive, aware, soon):
        job.cancel()


def test_a_queue_travels_without_its_connection_and_equals_its_like(q, server):
    import pickle

    own = Queue("low", server.url)
    assert own != q
    assert pickle.loads(pickle.dumps(own)) == Queue("low")
    assert len({q, Queue("low")}) == 1
    assert inspect.signature(Queue.enqueue).parameters["f"].kind is inspect.Parameter.POSITIONAL_ONLY
    assert json.dumps(q.name) == '"low"'
