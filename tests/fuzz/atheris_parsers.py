"""The same parsers under coverage-guided fuzzing, by hand: `pip install atheris`, then

    python tests/fuzz/atheris_parsers.py -max_total_time=240

Arguments are libFuzzer's; a folder among them is the corpus, which begins with the samples. pytest does not collect it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["nbqueue"]):
    from fuzz.parsers import OURS, PARSERS

    from nbqueue import wire

NAMES = sorted(PARSERS)


def tripped(*_args: object) -> None:
    raise AssertionError("something was unpickled")


def one_input(data: bytes) -> None:
    """The first byte chooses the parser; what is left is for it."""
    if data:
        with contextlib.suppress(*OURS):
            PARSERS[NAMES[data[0] % len(NAMES)]][0](data[1:])


def main() -> None:
    """Writes the samples into the corpus, if one is named, and fuzzes."""
    for folder in [Path(word) for word in sys.argv[1:] if not word.startswith("-")][:1]:
        folder.mkdir(exist_ok=True)
        for place, name in enumerate(NAMES):
            (folder / f"sample-{place}").write_bytes(bytes([place]) + PARSERS[name][1])
    wire.loads = tripped
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
