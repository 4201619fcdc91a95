"""Every message in the sources names a thing and a remedy: `PASSED_ON` alone says what others have said."""

import re

import pytest

from tests.errors.form import faults
from tests.errors.sites import Site, sites

SITES = sites()


def _reads_only(site: Site) -> bool:
    """What the source cannot tell: the message of another error, or one put together elsewhere."""
    return not re.search("[a-z] ", site.message)


@pytest.mark.parametrize("site", [s for s in SITES if not _reads_only(s)], ids=lambda site: site.key[:100])
def test_the_message_names_a_thing_and_a_remedy(site):
    assert not faults(site.message, filled=False)
