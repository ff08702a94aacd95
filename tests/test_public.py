import pytest

import ftjax
from ftjax.training.run import run


def test_what_is_public_is_there():
    assert ftjax.run is run
    for name in ftjax.PUBLIC:
        assert callable(getattr(ftjax, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ftjax.nothing  # noqa: B018
