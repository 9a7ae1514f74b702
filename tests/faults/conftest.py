"""What tests of faults need: short leases, the witness, and servers and wires that may be hurt."""

import pytest
from acceptance.conftest import diary, fleet, home, local_home, no_copy, session  # noqa: F401 - the same fixtures
from grounds import Hurt, Wire
from witness import Witness


@pytest.fixture
def witness(server, session, tmp_path):  # noqa: F811 - the fixture
    found = Witness(server.url, session.settings.namespace, session.sealer, tmp_path)
    yield found
    found.close()


@pytest.fixture
def wire(server, home, tmp_path):  # noqa: F811 - the fixture
    found = Wire(server.url, home, tmp_path)
    yield found
    found.close()


@pytest.fixture
def slow_wire(server, home, tmp_path):  # noqa: F811 - the fixture
    found = Wire(server.url, home, tmp_path, timeout=5)
    yield found
    found.close()


@pytest.fixture
def hurt(short_folder, home, tmp_path):  # noqa: F811 - the fixture
    found = Hurt(short_folder, home, tmp_path)
    yield found
    found.close()
