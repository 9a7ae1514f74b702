"""The monkey: all faults at once, on a running fleet and two clients, from one seed.

`python -m tests.monkey --minutes 10 --seed 7`, from the repository's root. `plan` draws what happens when, `stage` has
the processes, `faults` says what is done to whom, `client` and `flow` are what submits, `jobs` what is run, `verdict`
the invariants at the end, `table` what happened. In mode `always` the server's file is synced with every write: it may
be killed, and nothing that was acknowledged is lost. In mode `everysec` a kill takes the last second of the file along,
as when the power goes: outcomes that the store had told may be withdrawn and written anew (I2), a job may run while the
store does not know of it (I4), and a client may hear that the server lost a batch; all else holds in both.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))  # fleet, helpers, witness
