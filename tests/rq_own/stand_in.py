"""What the names of RQ's modules are here: `from stand_in.job import Job` gives `nbqueue.Job`.

A name that nbqueue has not is imported all the same, so that a test fails by what it uses, not by what stands above it.
"""

import sys
import time
from datetime import UTC, datetime
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import nbqueue
from nbqueue import errors
from nbqueue.client.submit import options
from nbqueue.policies import CALLBACK_TIMEOUT

RENAMED = {
    "JobStatus": nbqueue.State,
    "DEFAULT_RESULT_TTL": int(options.RESULT_TTL),
    "CALLBACK_TIMEOUT": int(CALLBACK_TIMEOUT),
    "VERSION": nbqueue.__version__,
    "NoSuchJobError": errors.NoSuchJob,
    "DuplicateJobError": errors.InUse,
    "InvalidJobDependency": errors.NoSuchDependency,
    "InvalidJobOperation": errors.BadInput,
    "DeserializationError": errors.CannotOpen,
    "JobTimeoutException": errors.JobTimeout,
    "TimeoutFormatError": errors.BadOption,
}


def get_connection_kwargs(connection):
    found = connection.connection_pool.connection_kwargs
    return {name: found[name] for name in ("host", "port", "db", "username", "password")}  # what can be pickled


def get_version(connection):
    return tuple(int(part) for part in connection.info("server")["redis_version"].split("."))


def now():
    return datetime.now(UTC)


def current_timestamp():
    return int(time.time())


def as_text(value):
    return value.decode() if isinstance(value, bytes) else value


HELPERS = {each.__name__: each for each in (get_connection_kwargs, get_version, now, current_timestamp, as_text)}


class Missing:
    """A name that is not here. Whatever is done with it is an error; a subclass of it is as missing."""

    def __init__(self, name, *_of):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(f"nbqueue has no {self._name} (asked for its {name})")

    def __call__(self, *args, **kwargs):
        raise NotImplementedError(f"nbqueue has no {self._name}")

    def __iter__(self):
        raise NotImplementedError(f"nbqueue has no {self._name}")


class Renamed(ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "main" and self.__name__.endswith(".cli"):
            from nbqueue.cli.main import cli

            return cli
        for names in (RENAMED, HELPERS):
            if name in names:
                return names[name]
        return getattr(nbqueue, name) if name in nbqueue.__all__ else Missing(name)


class Finder(MetaPathFinder, Loader):
    """Every module below `stand_in` is there."""

    def find_spec(self, fullname, _path, _target=None):
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith("stand_in.") else None

    def create_module(self, spec):
        return Renamed(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())
__path__ = []
_top = Renamed("stand_in")


def __getattr__(name):
    return getattr(_top, name)
