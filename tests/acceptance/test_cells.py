"""What a cell's code does in the notebook it does in a job: `__main__`, caches, display, `!commands`, environment."""

import subprocess
import sys
from importlib.metadata import version

import nbclient
import nbformat
import pytest

SETUP = """
import dataclasses, functools, inspect, multiprocessing, pickle, sys, typing
import nbqueue

@dataclasses.dataclass
class Node:
    x: int
    next: "Node | None" = None

def helper(n):
    return n + 1

@functools.lru_cache(maxsize=7)
def table(n):
    return list(range(n))

@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@functools.singledispatch
def kind(x):
    return "any"

@kind.register
def _(x: int):
    return "int"

class Holder:
    @functools.cached_property
    def five(self):
        return 5

    @functools.cache
    def six(self):
        return 6

def ran(function, *items):
    batch = nbqueue.map(function, items or [1], progress=False)
    batch.wait()
    print(*[job.exc_info or job.wait() for job in batch], sep="\\n")
    return batch

ran(abs)
"""


def shown(cells, folder="."):
    """What each cell of a notebook in `folder` prints, as text; `# %%` stands between cells."""
    sources = [SETUP, *cells.split("# %%"), "nbqueue.local().stop()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text.strip()) for text in sources])
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=100, kernel_name="python3", allow_errors=True, resources=where).execute()
    found = [
        "".join(o.get("text") or "\n".join(o.get("traceback", [])) for o in cell.outputs if o.get("name") != "stderr")
        for cell in book.cells
    ]
    return [text.strip() for text in found[1:-1]]


MAIN = """
def save(x):
    return pickle.loads(pickle.dumps(Node(x)))
batch = ran(save)
# %%
def keep(node):
    return pickle.loads(pickle.dumps(node)) == node
_ = ran(keep, Node(1), Node(2))
# %%
def several(x):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(helper, [x, x])
_ = ran(several)
# %%
def hints(x):
    return str(typing.get_type_hints(Node)["next"])
_ = ran(hints)
# %%
def source(x):
    return inspect.getsource(helper)
_ = ran(source)
# %%
print(isinstance(batch[0].wait(), Node), int(batch.to_frame()["x"][0]))
# %%
inner = functools.partial(lambda x: pickle.dumps(helper) and pickle.dumps(Node(x)) and x)
_ = ran(functools.partial(inner))
"""


@pytest.mark.usefixtures("local_home")
def test_main_is_the_notebooks_as_far_as_the_function_reaches_it():
    saved, given, pooled, hinted, source, back, bound = shown(MAIN)
    assert saved == "Node(x=1, next=None)"
    assert given == "True\nTrue"
    assert pooled == "[2, 2]"
    assert hinted.endswith("Node | None")
    assert source == "def helper(n):\n    return n + 1"
    assert back == "True 1"
    assert bound == "1"


CACHED = """
table(3), fib(9)
def total(n):
    return sum(table(n)), fib(n), table.cache_info()[2:]
_ = ran(total, 5)
# %%
_ = ran(lambda f: (f(3), f.__name__, f.cache_parameters()), table)
# %%
def usual(n, f=table):
    return f(n)
_ = ran(usual, 2)
# %%
_ = ran(table, 2)
# %%
_ = ran(lambda x: (kind(x), kind(str(x))))
# %%
_ = ran(lambda x: (Holder().five, Holder().six()))
"""


@pytest.mark.usefixtures("local_home")
def test_cached_and_dispatching_helpers_travel_with_an_empty_cache():
    called, given, default, itself, dispatched, of_classes = shown(CACHED)
    assert called == "(10, 5, (7, 1))"
    assert given == "([0, 1, 2], 'table', {'maxsize': 7, 'typed': False})"
    assert default == itself == "[0, 1]"
    assert dispatched == "('int', 'any')"
    assert of_classes == "(5, 6)"


SHELL = """
def work(x):
    display(x, Node(1), "text")
    !echo hello {x + 1} $x '$NONE'
    lines = !echo one; echo two
    handle = display("at first", display_id=True)
    handle.update("then")
    return "IPython" in sys.modules, lines, lines.s, get_ipython().user_ns["_exit_code"]
batch = ran(work)
print(batch[0].log)
# %%
def timed(x):
    %time helper(x)
_ = ran(timed)
# %%
def leave(x):
    exit() if x else quit(3)
for job in ran(leave, 0, 1):
    print(job.error)
# %%
for _ in range(2):
    batch = nbqueue.map(work, [1, 2], name="named", progress=False)
    batch.wait()
print(batch)
# %%
import io
def reads(path):
    return open is io.open, "IPython" in sys.modules, open(path).read()
_ = ran(reads, "nowhere", "/dev/null")
"""


@pytest.mark.usefixtures("local_home")
def test_display_commands_and_exit_work_in_a_job_and_magics_say_what_to_do():
    log, magic, left, named, opened = shown(SHELL)
    told, *log = log.splitlines()
    assert told == "(False, ['one', 'two'], 'one two', 0)"
    assert log[:6] == ["1", "Node(x=1, next=None)", "'text'", "hello 2 1 $NONE", "'at first'", "'then'"]
    assert "BadInput: %time works in a notebook's cell, and not in a function" in magic
    assert left.splitlines()[-2:] == ["SystemExit: 3", "SystemExit"]
    assert "2 finished" in named
    assert "FileNotFoundError" in opened
    assert "in _modified_open" not in opened  # IPython's own, which refuses some files
    assert opened.splitlines()[-1] == "(True, False, '')"


NAMESAKES = """
import wave, queue
def where(x):
    import wave
    return wave.__file__, queue.__file__
print((wave.__file__, queue.__file__))
_ = ran(where)
"""

SCRIPT = """
import wave, queue, netrc, pathlib, nbqueue
def where(x):
    import wave
    return wave.__file__
def after(x):
    return netrc.__file__
if __name__ == "__main__":
    print(wave.__file__, nbqueue.submit(where, 1).wait(60))
    pathlib.Path(__file__).with_name("netrc.py").write_text("here = 1")
    print(nbqueue.submit(after, 1).exception(60))
"""


@pytest.mark.usefixtures("local_home")
def test_a_file_with_the_name_of_a_library_module_is_the_same_module_in_both_or_is_refused_by_name(tmp_path):
    # Older kernels look into their folder first while they start themselves, and do not start beside such a queue.py.
    for name in ("wave", "queue") if int(version("ipykernel").partition(".")[0]) >= 7 else ("wave",):
        (tmp_path / f"{name}.py").write_text("here = 1\n")
    [found] = shown(NAMESAKES, tmp_path)  # a kernel looks into its folder behind the standard library
    here, job = found.splitlines()
    assert job == here
    (tmp_path / "queue.py").unlink(missing_ok=True)
    (tmp_path / "script.py").write_text(SCRIPT)  # a script's folder comes first
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    same, refused = done.stdout.splitlines()
    assert same.split() == [str(tmp_path / "wave.py")] * 2
    assert f"the module 'netrc' here ({tmp_path}/netrc.py) is not the one of the notebook or script" in refused
    assert "Give yours another name" in refused
