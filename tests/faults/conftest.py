"""What tests of faults need: short leases, the witness, and servers that may be killed."""

import pytest
from acceptance.conftest import diary, fleet, home, no_copy, session  # noqa: F401 - the same fixtures
from witness import Witness


@pytest.fixture
def witness(server, session, tmp_path):  # noqa: F811 - the fixture
    found = Witness(server.url, session.settings.namespace, session.sealer, tmp_path)
    yield found
    found.close()
