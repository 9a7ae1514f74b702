"""The grammar of `nbqueue enqueue`'s arguments is RQ's."""

import pytest

from nbqueue.cli.rq_arguments import parse
from nbqueue.errors import BadInput


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("abc", "abc"),
        ("3", "3"),
        (":3", 3),
        (':{"a": [1, null]}', {"a": [1, None]}),
        ("%(1, 'a')", (1, "a")),
        ("http://example.org/?a=b", "http://example.org/?a=b"),
        ("a b=c", "a b=c"),
        ("", ""),
        ("=x", "=x"),
    ],
)
def test_a_positional_argument(argument, meant):
    assert parse([argument]) == ([meant], {})


@pytest.mark.parametrize(
    ("argument", "meant"),
    [("key=abc", "abc"), ("key:=3", 3), ("key%={1, 2}", {1, 2}), ("key=", ""), ("key=a=b", "a=b"), ("key=:3", ":3")],
)
def test_a_keyword(argument, meant):
    assert parse([argument]) == ([], {"key": meant})


def test_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert parse([f"@{path}", f"text=@{path}", f"found:=@{path}", f":@{path}"]) == (
        ['{"a": 1}', {"a": 1}],
        {"text": '{"a": 1}', "found": {"a": 1}},
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([":{"], "is not JSON"),
        (["key:=nothing"], "is not JSON"),
        (["%open('x')"], "is not a Python literal"),
        (["@/no/such/file"], "cannot be read"),
        (["a=1", "a=2"], "given twice"),
    ],
)
def test_what_cannot_be_meant(arguments, why):
    with pytest.raises(BadInput, match=why):
        parse(arguments)
