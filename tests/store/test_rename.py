"""rename: a batch bears another name, and the old one is free. And the marks that submit and extend bring."""

import pytest
from helpers import claim, ended, join, leases, new_batch, submit

from nbqueue.errors import NoSuchBatch


def test_the_old_name_is_free_and_the_new_one_taken(broker):
    submit(broker, "b1", name="words")
    assert broker.rename("b1", "words", "words@1")
    assert broker.named("words") is None
    assert (broker.named("words@1"), broker.view("b1").name) == ("b1", "words@1")
    submit(broker, "b2", name="words")
    assert not broker.rename("b2", "words", "words@1")  # in use
    assert broker.named("words") == "b2"


def test_again_or_too_late_it_changes_nothing(broker):
    submit(broker, "b1", name="words")
    assert broker.rename("b1", "words", "words@1")
    assert broker.rename("b1", "words", "words@1")
    assert broker.rename("b1", "words", "words@2")  # another one has set it aside already
    assert broker.view("b1").name == "words@1"
    assert broker.named("words@2") is None
    with pytest.raises(NoSuchBatch):
        broker.rename("b9", "words", "words@1")


def test_a_name_of_another_signer_is_no_matter(broker):
    submit(broker, "b1", name="words")
    submit(broker, "b2", name="words@1", signer="11223344")
    assert broker.rename("b1", "words", "words@1")
    assert broker.named("words@1", "aabbccdd") == "b1"
    assert broker.named("words@1", "11223344") == "b2"


def test_a_done_batch_is_swept_with_its_new_name(broker):
    join(broker)
    submit(broker, "b1", n=1, name="words")
    broker.settle("w1", [ended(lease) for lease in leases(claim(broker))])
    assert broker.rename("b1", "words", "words@1")
    assert broker.forget("b1")
    assert broker.named("words@1") is None


def test_marks_come_with_their_arguments_and_stay_in_place(broker):
    def marks(*letters):
        return b"".join(letter * 16 for letter in letters)

    batch = new_batch("b1")
    broker.submit(batch, [b"0", b"1"], last=False, marks=marks(b"a", b"b"))
    for _ in range(2):  # sent twice
        broker.extend("b1", 2, [b"2"], nonce=batch.nonce, last=True, marks=marks(b"c"))
    assert broker.marks("b1") == marks(b"a", b"b", b"c")
    broker.extend("b1", 3, [b"3"], nonce="other", last=True, marks=marks(b"d"))
    with pytest.raises(Exception, match="in use"):
        broker.extend("b1", 3, [b"x"], nonce="late", last=True, marks=marks(b"x"))
    assert broker.marks("b1") == marks(b"a", b"b", b"c", b"d")
    broker.cancel("b1")


def test_marks_follow_parts(broker):
    broker.submit(new_batch("b1"), [b"x"] * 2500, last=True, marks=bytes(range(250)) * 160)
    assert broker.marks("b1") == bytes(range(250)) * 160
    assert broker.marks("b9") == b""
    broker.cancel("b1")


def test_retry_without_rows_takes_another_function(broker):
    submit(broker, "b1")
    broker.cancel("b1")
    assert broker.retry("b1", [], nonce="n", function=b"another", key="k2", spec=b"spec 2") == 0
    assert broker.function("b1") == b"another"
    assert (broker.view("b1").key, broker.view("b1").spec, broker.view("b1").done) == ("k2", b"spec 2", True)
