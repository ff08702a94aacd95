"""Every tuning method on every family that tests/tuning/test_methods.py does not run it on.

Needs no torch; it is here because it takes minutes.
"""

import pytest
from test_methods import FAMILIES_HERE, check, refusal
from tiny import FAMILY_NAMES

from ftjax.tuning import METHODS

# The same modules as another family's, under another config.
SAME_CODE = ("mbart", "marian", "mt5", "mistral", "gemma2", "deit", "siglip_text_model")
FAMILIES = [name for name in FAMILY_NAMES if name not in (*FAMILIES_HERE, *SAME_CODE)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_combination(method, family, record_property):
    record_property("refused", refusal(method, family) or "")
    check(method, family)
