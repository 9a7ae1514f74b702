"""A session and real workers, as the acceptance tests have them."""

from acceptance.conftest import fleet, home, no_copy, session  # noqa: F401 - the same fixtures
