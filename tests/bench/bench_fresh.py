"""What keeping calls apart costs, in microseconds a call: `python tests/bench/bench_fresh.py`.

The process's state is read and compared, and the function is looked through or opened again, as between two calls of a
child. Last, with NumPy, pandas and pyplot imported. The best of many short rounds: others use the machine, too.
"""

from __future__ import annotations

import importlib
import os
import pickle
import timeit
from collections import Counter

import cloudpickle

from nbqueue import perform
from nbqueue.model import FunctionRecord
from nbqueue.worker import fresh, horse, loading, restore


def cost(name: str, call: object, number: int = 30) -> None:
    best = min(timeit.repeat(call, "import gc; gc.enable()", number=number, repeat=500)) / number  # type: ignore[arg-type]
    print(f"{name:52} {best * 1e6:8.1f} us")


def copies(function: object) -> fresh.Copies:
    payload = cloudpickle.dumps(function)
    return fresh.Copies(lambda: pickle.loads(payload))


def main() -> None:
    record = FunctionRecord(key="k", label="f", payload=b"", python="", interpreter="", host="", cwd=os.getcwd())  # noqa: PTH109
    loading.settle_in(record)
    horse.shield()
    scale, counter = 2.0, Counter()
    job = perform.pack((1,), {})
    cost("a call of abs, its arguments and result", lambda: perform.perform(abs, job, job="b:0", max_result=None))
    cost("between calls: a function that holds a number", copies(lambda x: x * scale).renew)
    cost("between calls: a function that holds a Counter", copies(lambda x: counter[x]).renew)
    cost("before a call with a seed", lambda: restore.sow(1, 2))
    for modules in ((), ("numpy",), ("pandas",), ("matplotlib.pyplot",)):
        for module in modules:
            importlib.import_module(module)
        scene = restore.Scene(os.dup(1))
        assert scene.restore()
        cost(f"between calls: the process, {' '.join(modules) or 'standard library'} imported", scene.restore)


if __name__ == "__main__":
    main()
