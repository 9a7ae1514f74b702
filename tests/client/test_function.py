from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import textwrap
import threading

import cloudpickle
import pytest

import nbqueue
from nbqueue import wire
from nbqueue.client.calls import fingerprint, function, modules
from nbqueue.client.calls.function import describe
from nbqueue.errors import BadInput, BadOption, NotPicklable, TooLarge
from nbqueue.model import FunctionRecord, decode
from nbqueue.policies import Callback

BIG = b""


@pytest.fixture
def lib(tmp_path, monkeypatch):
    """A module of the user's own, with a helper that it imports, and one that it imports late."""
    (tmp_path / "ownlib.py").write_text(
        "import ownhelper\ndef f(x):\n    from ownpack import late\n    return late.VALUE + ownhelper.A\n"
    )
    (tmp_path / "ownhelper.py").write_text("import json, numpy\nA = 1\n")
    (tmp_path / "ownpack").mkdir()
    (tmp_path / "ownpack" / "__init__.py").write_text("")
    (tmp_path / "ownpack" / "late.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own")]:
        del sys.modules[name]


def loaded(record):
    return wire.loads(record.payload)


def test_an_importable_function_travels_by_reference_with_all_its_own_modules(lib):
    import ownlib

    found = describe(ownlib.f)
    assert set(found.record.modules) == {"ownlib", "ownhelper", "ownpack", "ownpack.late"}
    assert len(found.record.payload) < 200
    assert loaded(found.record) is ownlib.f
    assert str(lib) in found.record.path


@pytest.mark.parametrize("edited", ["ownlib.py", "ownhelper.py", "ownpack/late.py"])
def test_an_edit_anywhere_below_changes_the_key(lib, edited):
    import ownlib

    before = describe(ownlib.f).record.key
    assert describe(ownlib.f).record.key == before
    path = lib / edited
    path.write_text(path.read_text() + "# edited\n")
    assert describe(ownlib.f).record.key != before


def test_who_has_edited_a_module_and_not_imported_it_again_is_told(lib):
    (lib / "ownedit.py").write_text("def f(x):\n    return 1\n\ndef g(x):\n    return [y for y in (1,)]\n")
    import ownedit

    describe(ownedit.f)
    (lib / "ownedit.py").write_text("# a comment\ndef f(x):\n    return 1\n\ndef g(x):\n    return [y for y in (1,)]\n")
    describe(ownedit.f)  # the same numbers come out
    (lib / "ownedit.py").write_text("def f(x):\n    return 22\n\ndef g(x):\n    return [y for y in (1,)]\n")
    with pytest.warns(UserWarning, match=r"^ownedit: .* importlib\.reload"):
        describe(lambda x: ownedit.f(x) + 1)
    describe(ownedit.f)  # once is enough
    importlib.reload(ownedit)
    describe(ownedit.f)
    (lib / "ownedit.py").write_text("def f(x):\n    return 22\n\ndef g(x):\n    return [y + 1 for y in (1,)]\n")
    with pytest.warns(UserWarning, match="reload"):
        describe(ownedit.f)


@pytest.mark.filterwarnings("error")
def test_names_that_are_defined_more_than_once_are_no_edit(lib):
    twice = "try:\n    import nothing_like_it\n    def f(x): return 1\nexcept ImportError:\n    def f(x): return 2\n"
    (lib / "owntwice.py").write_text(
        twice + "def wrap(f):\n    def g(x): return f(x)\n    return g\n@wrap\ndef g(x): return 3\n"
    )
    import owntwice

    assert describe(owntwice.f).record.modules


def test_a_lambda_that_uses_an_own_module_carries_its_digest(lib):
    import ownlib

    assert "ownhelper" in describe(ownlib.f).record.modules


def test_data_that_refers_to_an_own_module_carries_its_digest(lib):
    import ownlib

    table = [ownlib.f]
    assert "ownlib" in describe(lambda: table[0](1)).record.modules


def test_a_half_edited_module_is_digested_all_the_same(lib):
    (lib / "ownbroken.py").write_text("def f(:\n")
    assert set(modules.digests(["ownbroken"])) == {"ownbroken"}


def test_relative_imports_are_followed(lib):
    (lib / "ownpack" / "near.py").write_text("from . import late\nfrom .late import VALUE\nfrom .. import x\n")
    assert set(modules.digests(["ownpack.near"])) == {"ownpack", "ownpack.near", "ownpack.late"}


def test_a_dotted_name_is_imported_where_it_runs(lib):
    found = describe("ownlib.f")
    assert found.label == "f"
    assert str(found.signature) == "(x)"
    assert (found.record.pinned, found.record.modules) == (False, {}), "it runs with the code that is there"
    assert "ownhelper" in describe("ownlib.f", pin=True).record.modules
    assert loaded(found.record).__name__ == "f"


def test_a_dotted_name_that_is_not_here_is_sent_as_it_is():
    found = describe("no_such_module_here.sub.f")
    assert found.call is None
    assert found.signature is None
    with pytest.raises(ModuleNotFoundError):
        loaded(found.record)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("json.nothing", "There is no 'json.nothing'"),
        ("json", "not a dotted function name"),
        ("a b.c", "not a dotted function name"),
        ("os.sep", "cannot be called"),
        ("", "not a dotted function name"),
        (17, "cannot be called"),
        (None, "cannot be called"),
    ],
)
def test_what_is_no_function_is_refused(name, why):
    with pytest.raises(BadInput, match=why):
        describe(name)


def test_a_module_that_fails_to_import_is_told_at_once(lib):
    (lib / "ownbad.py").write_text("import no_such_thing_at_all\ndef f(): pass\n")
    with pytest.raises(BadInput, match="no_such_thing_at_all"):
        describe("ownbad.f")


class Local:
    def __init__(self, n):
        self.n = n

    def add(self, x):
        return self.n + x

    def __call__(self, x):
        return self.n * x


def test_lambdas_closures_local_classes_and_bound_methods_travel():
    class Inner:
        def go(self, x):
            return x + offset

    offset = 5
    for thing, expected in [
        (lambda x: x + offset, 7),
        (Inner().go, 7),
        (Local(3).add, 5),
        (Local(3), 6),
        (functools.partial(pow, 3), 9),
        (int, 2),
    ]:
        assert loaded(describe(thing).record)(2) == expected


def test_labels_are_for_people():
    assert describe(lambda: 0).label == "lambda"
    assert describe(functools.partial(pow, 2)).label == "pow"
    assert describe(Local(1)).label == "Local"


def test_a_module_that_the_user_named_travels_whole(lib):
    import ownlib

    cloudpickle.register_pickle_by_value(ownlib)
    try:
        found = describe(ownlib.f)
        assert "ownlib" not in found.record.modules
        assert "ownhelper" in found.record.modules
        assert len(found.record.payload) > 300
    finally:
        cloudpickle.unregister_pickle_by_value(ownlib)


def test_a_function_that_does_not_pickle_names_the_culprit():
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match="It captures lock"):
        describe(lambda: lock)


def test_large_captures_warn_and_are_named():
    df = bytes(12 << 20)
    with pytest.warns(UserWarning, match=r"captures 12.0 MB \(df 12.0 MB\): pass a path, or a slice as argument"):
        describe(lambda: df)


def test_captures_that_are_too_large_are_refused_and_named(monkeypatch):
    monkeypatch.setattr(function, "MAX_FUNCTION", 5 << 20)
    df = bytes(12 << 20)
    with pytest.raises(TooLarge, match=r"The function lambda is too large: over 5 MB. It captures df 12.0 MB: pass"):
        describe(lambda: df)


def test_variables_travel_by_name_and_change_the_key(monkeypatch):
    monkeypatch.setenv("API_KEY", "one")
    first = describe(pow, env=["API_KEY"]).record
    assert first.env == {"API_KEY": "one"}
    monkeypatch.setenv("API_KEY", "two")
    assert describe(pow, env=["API_KEY"]).record.key != first.key
    with pytest.raises(BadOption, match="NOT_SET is not set"):
        describe(pow, env=["NOT_SET"])


def test_the_key_knows_cwd_and_salt(tmp_path, monkeypatch):
    before = describe(pow).record.key
    assert describe(pow).record.key == before
    assert describe(pow, salt=b"secret").record.key != before
    monkeypatch.chdir(tmp_path)
    assert describe(pow).record.key != before


def test_a_script_travels_by_value(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from nbqueue.client.calls.function import describe
        OFFSET = 40
        def f(x):
            return x + OFFSET
        import sys
        sys.stdout.buffer.write(describe(f).record.payload)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True)
    assert wire.loads(done.stdout)(2) == 42, done.stderr


def test_same_code_looks_at_what_is_said_and_not_where():
    first, second = eval("lambda x: x + 1"), eval("\n\nlambda x: x + 1")
    assert fingerprint.same_code(first, second)
    assert not fingerprint.same_code(first, eval("lambda x: x + 2"))
    assert not fingerprint.same_code(first, eval("lambda x=1: x + 1"))


def test_callbacks_are_part_of_what_travels(lib):
    import ownlib

    def say(job, connection, result):
        return None

    def keys(**hooks):
        return describe(abs, hooks=hooks).record.key

    found = describe(abs, hooks={"success": Callback(ownlib.f, timeout=5), "failure": Callback("os.getcwd")}).record
    assert {name: (hook.label, hook.timeout) for name, hook in found.hooks.items()} == {
        "success": ("f", 5), "failure": ("getcwd", 60),
    }  # fmt: skip
    assert wire.loads(found.hooks["success"].payload) is ownlib.f
    assert wire.loads(found.hooks["failure"].payload) is os.getcwd
    assert "ownhelper" in found.modules
    assert describe(abs, hooks=found.hooks).record == found  # a retry with another function keeps them
    equal = keys(success=Callback(say)), keys(success=Callback(say))
    assert equal[0] == equal[1]
    others = [keys(), keys(failure=Callback(say)), keys(success=Callback(say, timeout=9)), keys(success=Callback(abs))]
    assert len({*equal, *others}) == 5
    with pytest.raises(BadInput, match="not a dotted function name"):
        describe(abs, hooks={"success": Callback("nothing")})


def test_what_a_call_will_import_is_named_ahead(lib):
    import ownlib

    def f(x):
        import colorsys

        def inner():
            from xml.dom import minidom

            return minidom

        from .json import loads  # noqa: F401 - of a package that nobody knows

        return colorsys, inner

    imports = describe(f).record.imports
    assert set(imports) == {"colorsys", "xml.dom", "xml.dom.minidom"}
    assert list(imports) == sorted(imports)
    # Of a function that stays in its module, and of those of the user's own that it calls there.
    (lib / "ownpack" / "deep.py").write_text(
        "import json\ndef f():\n    return g()\ndef g():\n    import wave, ownhelper\n"
    )
    from ownpack import deep

    assert describe(deep.f).record.imports == ("ownhelper", "wave")
    assert {"ownpack.late"} <= set(describe(ownlib.f).record.imports)
    assert describe(json.dumps).record.imports == ()  # a library's own late imports are learnt when they are met


def test_what_the_arguments_need_is_named_ahead_but_no_module_that_may_change(lib, session):
    import ownhelper
    import pandas as pd

    def imports(item, code="lambda x: x"):
        batch = nbqueue.map(eval(code, {"__name__": "__main__", "ownhelper": ownhelper}), [item, 1])
        record = decode(FunctionRecord, wire.peek(session.broker.function(batch.id)))
        batch.cancel()
        return set(record.imports), record.key

    nothing, key = imports(1)
    frame, same = imports([pd.DataFrame({"a": [1]})])
    assert nothing == set()
    assert "pandas" in frame or any(name.startswith("pandas.") for name in frame)
    assert same == key
    ownhelper.Thing = type("Thing", (), {"__module__": "ownhelper"})
    assert imports(ownhelper.Thing())[0] == set()  # edited, it would run as it was
    assert "ownhelper" in imports(ownhelper.Thing(), "lambda x: (x, ownhelper.A)")[0]
