"""The environment of a job, made from that of its worker."""

from __future__ import annotations

from collections.abc import Mapping

_SCRUBBED = ("NBQUEUE_SECRET", "NBQUEUE_URL")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def for_jobs(environ: Mapping[str, str], cpus: int) -> dict[str, str]:
    """`environ` without the way to the server, the key and Jupyter's words; numerical libraries use `cpus` threads."""
    kept = {name: value for name, value in environ.items() if name not in _SCRUBBED and not name.startswith("JPY_")}
    return dict.fromkeys(_THREADS, str(cpus)) | kept | {"MPLBACKEND": "Agg"}
