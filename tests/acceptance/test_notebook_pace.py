"""How often a panel speaks to the notebook, as a kernel's clients hear it."""

import contextlib
import itertools
import statistics
import time
from queue import Empty

import pytest
from jupyter_client.manager import start_new_kernel
from lab import BEGIN

WINDOW = 3  # seconds
QUICK = """def quick(n):
    time.sleep(0.004)
    if n % 9 == 0: raise KeyError(str(n))
batch = nbqueue.map(quick, range(20_000))"""


@pytest.fixture
def client(home, monkeypatch):
    monkeypatch.delenv("NBQUEUE_PROGRESS")
    manager, found = start_new_kernel(startup_timeout=60)
    yield found
    found.stop_channels()
    manager.shutdown_kernel(now=True)


def heard(client, seconds):
    """What the kernel says meanwhile."""
    found, end = [], time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(Empty):
            found.append(client.get_iopub_msg(timeout=left))
    return found


def bars(messages):
    """When the kernel sent the bar anew."""
    state = [(each["header"]["date"], str(each["content"].get("data", {}).get("state", ""))) for each in messages]
    return [date.timestamp() for date, text in state if "progressbar" in text]


def test_a_panel_moves_five_times_a_second_at_most_and_in_its_own_cell(server, session, fleet, client, tmp_path):
    fleet.start().up()
    facts = {"home": tmp_path / "home", "url": server.url, "space": session.settings.namespace, "here": tmp_path}
    assert client.execute_interactive(BEGIN.format(**{name: str(fact) for name, fact in facts.items()}), timeout=60)
    shown = []
    client.execute_interactive(QUICK, timeout=60, output_hook=shown.append)
    places = {told["content"]["transient"]["display_id"] for told in shown if told["msg_type"] == "display_data"}
    heard(client, 1)
    said = heard(client, WINDOW)
    times = bars(said)
    pause = statistics.median(after - before for before, after in itertools.pairwise(times))
    span = times[-1] - times[0]
    print(f"{(len(times) - 1) / span:.1f} bars/s, {len(said) / WINDOW:.1f} messages/s, median pause {pause:.3f} s")
    assert len(times) >= 3
    assert (len(times) - 1) / span < 5.5
    assert pause > 0.18
    assert len(said) < 100 * WINDOW
    saved = [message for message in said if message["msg_type"] == "update_display_data"]
    assert 1 <= len(saved) <= WINDOW + 3
    assert {message["content"]["transient"]["display_id"] for message in saved} <= places
    assert not any(message["msg_type"] in {"display_data", "stream", "execute_result"} for message in said)
    client.execute_interactive("batch.cancel(); batch.wait(20)", timeout=60)
