"""The README's two commands, each from a fresh clone with nothing but Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands():
    blocks = re.findall(r"```sh\n(python3 -m venv .*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    return blocks


@pytest.mark.e2e
def test_the_first_command_in_a_fresh_clone(tmp_path):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    python = tmp_path / "bin"
    python.mkdir()
    (python / "python3").symlink_to(sys.executable)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NBQUEUE_", "VIRTUAL_ENV"))}
    env = kept | {"HOME": str(tmp_path), "PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", commands()[0]], cwd=tmp_path / "clone", env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing on purpose" in done.stdout
    assert not (tmp_path / ".nbqueue").exists()


def test_the_second_is_what_runs_this():
    assert commands()[1].endswith(".venv/bin/pytest")
