"""Brings RQ's own tests from its sdist, renames their imports, and runs them against nbqueue. Nothing of them is kept.

`python tests/rq_own/adapt.py` runs all of them and prints how each ended, with the last line of what failed.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
(RELEASE,) = (each for each in EXTRAS["bench"] if each.startswith("rq=="))
CORE = (  # what a user of RQ meets: not its key names, its loops, its scripts, cron, webhooks, rate limits
    *("callbacks", "cli", "commands", "decorator", "dependencies", "group", "job", "job_dependency", "queue"),
    *("queue_unique", "registry", "repeat", "results", "retry", "scheduler", "timeouts", "worker", "worker_pool"),
)
FILES = tuple(f"tests/test_{name}.py" for name in CORE)


def sdist(folder):
    """The sdist, from the folder NBQUEUE_TEST_RQ_SDIST or by pip into this one; else None, with the reason."""
    folder = Path(os.environ.get("NBQUEUE_TEST_RQ_SDIST") or folder)
    found = folder / (RELEASE.replace("==", "-") + ".tar.gz")
    if not found.exists():
        words = ["download", "--quiet", "--no-deps", "--no-binary", "rq", "--retries", "1", "--dest", str(folder)]
        done = subprocess.run([sys.executable, "-m", "pip", *words, RELEASE], capture_output=True, text=True)
        if done.returncode:
            return None, done.stderr.strip()[-300:]
    return found, ""


def adapt(archive, folder):
    """Their tests in `folder`, with imports from `stand_in`, and the address of the server that `ground` starts."""
    with tarfile.open(archive) as whole:
        inside = [each for each in whole.getmembers() if re.match(r"[^/]+/tests/", each.name)]
        whole.extractall(folder, inside, filter="data")
    (found,) = folder.glob("rq-*/tests")
    shutil.move(found, folder / "tests")
    for path in (folder / "tests").rglob("*.py"):
        text = re.sub(r"^(\s*(?:from|import) )rq\b", r"\1stand_in", path.read_text(), flags=re.MULTILINE)
        path.write_text(text.replace("127.0.0.1:6379", '127.0.0.1:{__import__("os").environ["RQ_OWN_PORT"]}'))


def command(folder, words, report):
    """pytest's words, and the environment, to run their tests in `folder`."""
    (folder / "home").mkdir(mode=0o700, exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n    ssl_test\n")
    paths = [str(folder), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NBQUEUE_", "PYTEST_", "RQ_"))}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "RQ_OWN_REPORT": str(report)}
    env |= {"NBQUEUE_HOME": str(folder / "home"), "NBQUEUE_PROGRESS": "0"}
    return [sys.executable, "-m", "pytest", "-q", "-p", "ground", "-p", "no:cacheprovider", *words], env


def short(name):
    return name.removeprefix("tests/test_").replace(".py::", "::")


def collected(folder):
    """The ids of CORE."""
    words, env = command(folder, ["--collect-only", *FILES], folder / "report")
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return {short(line) for line in done.stdout.splitlines() if "::" in line}


def run(folder, ids=FILES, processes=4, seconds=500):
    """Runs these tests: id -> how it ended, with its text; and the log. Whatever they leave behind is ended."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        report, listed = Path(place) / "report", Path(place) / "ids"
        report.touch()
        listed.write_text("\n".join(ids))
        words, env = command(folder, ["-n", str(processes), "--dist", "worksteal", f"@{listed}"], report)
        with (Path(place) / "log").open("w+") as log:
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            ran = subprocess.Popen(words, cwd=folder, env=env, start_new_session=True, **files)
            with contextlib.suppress(subprocess.TimeoutExpired):
                ran.wait(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ran.pid, signal.SIGKILL)
            ran.wait()
            log.seek(0)
            said = log.read()
        found = {}
        for each in map(json.loads, report.read_text().splitlines()):
            if short(each["id"]) not in found or each["outcome"] == "failed":  # a part of a test, or its tear-down
                found[short(each["id"])] = each
    return found, said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nbq-rq-") as name:
        archive, why = sdist(name)
        if archive is None:
            sys.exit(why)
        adapt(archive, Path(name))
        found, log = run(Path(name), sys.argv[1:] or FILES)
        print(log[-300:])
        if kept := os.environ.get("RQ_OWN_KEEP"):
            Path(kept).write_text(json.dumps(found))
        for key, each in sorted(found.items()):
            last = [line for line in each["text"].splitlines() if line.startswith("E  ")]
            print(f"{each['outcome']:8}{each['seconds']:7.1f} {key}  {last[0] if last else ''}")
