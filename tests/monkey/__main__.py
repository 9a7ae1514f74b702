"""`python -m tests.monkey --minutes 10 --seed 7`."""

import argparse
import os
import random
import sys
import traceback

from tests.monkey.run import Run


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.monkey", description="All faults at once, from one seed.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the faults go on")
    parser.add_argument("--seed", type=int, default=None, help="the plan; without it one is drawn")
    parser.add_argument(
        "--mode", choices=("always", "everysec"), default="always", help="when the server's file is synced"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder, whatever came out")
    words = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 30) if words.seed is None else words.seed
    run = Run(seed, words.minutes, words.mode)
    try:
        run.play()
        run.judge()
    except BaseException:
        run.findings.append(f"the monkey itself broke off:\n{traceback.format_exc()}")
    finally:
        keep = words.keep or bool(run.findings)
        if keep:
            _logs(run)
        run.close(keep=keep)
    print(f"\nseed {seed}, {words.minutes} minutes, {words.mode}: {len(run.findings)} findings")
    for place, text in enumerate(run.findings, 1):
        print(f"{place}. {text}")
    sys.stdout.flush()
    os._exit(1 if run.findings else 0)  # threads may still wait for a server that is gone


def _logs(run):
    """The workers' logs, beside all else that is kept."""
    for worker in run.stage.workers():
        (run.stage.folder / f"worker-{worker.pid}.log").write_text(worker.log)
    print(f"kept: {run.stage.folder}")


main()
