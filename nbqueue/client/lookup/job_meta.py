"""What a job says of itself: its meta and how far it is, as sealed msgpack. Nothing of it is ever unpickled."""

from __future__ import annotations

from typing import Any

from nbqueue import wire
from nbqueue.current import pack_meta, unpack_meta
from nbqueue.model import JobMeta, Spec, decode, encode


def packed(meta: dict[str, Any] | None) -> bytes:
    """A meta dict as the spec of a batch carries it. Raises BadInput."""
    return pack_meta(meta) if meta else b""


def plain(meta: dict[str, Any]) -> dict[str, Any]:
    """A copy of a meta dict as it will come back: of plain data. Raises BadInput."""
    return unpack_meta(pack_meta(meta))


def sealed(sealer: wire.Sealer, batch: str, index: int, meta: dict[str, Any], progress: Any = None) -> bytes:
    """A job's notes as the store keeps them. Raises BadInput where meta is no plain data."""
    return sealer.seal(wire.META, batch, index, encode(JobMeta(plain(meta), progress)))


def opened(sealer: wire.Sealer, spec: Spec, batch: str, index: int, blob: bytes | None) -> JobMeta:
    """The notes in what the store keeps; what the batch began with where it keeps none. Raises BadSignature."""
    if not blob:
        return JobMeta(unpack_meta(spec.meta))
    return decode(JobMeta, sealer.unseal(wire.META, batch, index, blob), f"The meta of {batch}:{index}")
