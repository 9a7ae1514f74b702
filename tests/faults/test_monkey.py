"""All faults at once for half a minute; `python -m tests.monkey --minutes 10` does it for longer."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEED = os.environ.get("MONKEY_SEED", "20")


def test_what_all_faults_together_leave_is_whole(tmp_path):
    words = [sys.executable, "-m", "tests.monkey", "--minutes", "0.5", "--seed", SEED]
    with (tmp_path / "story").open("w+") as story:
        ran = subprocess.run(words, cwd=ROOT, stdout=story, stderr=subprocess.STDOUT, timeout=400)
        story.seek(0)
        text = story.read()
    print(text)  # shown where it fails: the seed, the plan as it was played, the findings
    assert ran.returncode == 0, f"MONKEY_SEED={SEED}\n{text.rpartition(' findings')[2]}"
    assert "0 findings" in text


def test_a_seed_is_a_plan():
    from monkey.plan import draw

    assert list(map(str, draw(7, 60))) == list(map(str, draw(7, 60)))
    assert list(map(str, draw(7, 60))) != list(map(str, draw(8, 60)))
