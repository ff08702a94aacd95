"""What the trials of whole runs share."""

import pytest


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A cache of compiled programs."""
    return tmp_path_factory.mktemp("programs")
