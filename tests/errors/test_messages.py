"""Every message in the sources names a thing and a remedy, as far as the source tells it."""

import re

from tests.errors.form import faults
from tests.errors.sites import sites


def test_messages_in_the_sources_name_a_thing_and_a_remedy():
    """Those made of values alone are another error's, and are judged where tests provoke them (tests/errors)."""
    found = sites()
    assert len({site.key for site in found}) == len(found) > 1000
    wrong = [f"{site.file}:{site.lines[0]} {site.message!r} {fault}" for site in found
             if re.search("[a-z] ", site.message) for fault in faults(site.message, filled=False)]
    assert not wrong, "\n".join(wrong)
