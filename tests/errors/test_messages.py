"""Every message in the sources names a thing and a remedy, as far as the source tells it."""

import re

import pytest

from tests.errors.__main__ import excused
from tests.errors.form import faults
from tests.errors.sites import sites


def test_messages_in_the_sources_name_a_thing_and_a_remedy():
    """Those made of values alone are another error's, and are judged where tests provoke them (tests/errors)."""
    found = sites()
    assert len({site.key for site in found}) == len(found) > 1000
    wrong = [f"{site.file}:{site.lines[0]} {site.message!r} {fault}" for site in found
             if re.search("[a-z] ", site.message) for fault in faults(site.message, filled=False)]
    assert not wrong, "\n".join(wrong)


def test_what_is_excused_from_being_provoked_is_there_and_has_a_reason():
    found = excused()
    assert not found.keys() - {site.key for site in sites()}
    assert all("needs" in reason and "tests/" in reason for reason in found.values())


@pytest.mark.parametrize(("message", "fault"), [
    ("steps=0: must be at least 1", []),
    ("x.json: cannot be read (no such file)", ["says no remedy"]),
    ("x.json: cannot be read (no such file); copy it again", []),
    ("latent: none was set, and a run is given", ["says no remedy"]),
    ("something went wrong", ["names no thing before a colon or an equals sign", "says no remedy"]),
])
def test_a_participle_or_a_noun_is_no_remedy(message, fault):
    assert faults(message) == fault
