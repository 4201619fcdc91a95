"""What a message must have: the thing (``field=value: `` or ``thing: ``) and a remedy, in one line."""

import re

_VERBS = """add ask begin build call change check choose clean compile convert copy cut delete differentiate download
draw export fill free generate get give group install keep leave let load look lower make map measure
mend mount move name pass pip plan point prepare put raise read remove rename renew repair restore run save
say see set shorten show spell start stop take train turn unpack unset update use wait write""".split()
_THING = re.compile(r"^[^;]{1,200}?(=|: | is missing)", re.DOTALL)
_REMEDY = re.compile(rf"\b({'|'.join(_VERBS)}|must|needs?|as in|did you mean|is one of|lies? (with)?in)\b"
                     r"|\btakes .*number")
_CHOICES = re.compile(r"(; |: )(they|it|its \w+|there|axes|generations|the decoder \S+) (is|are|has|have|holds?)\b")
# A verb behind these is a participle or a noun, and tells nobody to do it.
_NO_REQUEST = re.compile(r"\b(be|been|being|is|are|was|were|has|have|had|a|an|the|this|that|its|each|every|own|no|of)"
                         rf"( (not|also|already|now|no longer))? ({'|'.join(_VERBS)})\b")
# What a template may leave to its values: the last clause, or the beginning.
_HANDED_REMEDY = re.compile(r"(; |: |=|the network )\{\}( \(\{\}\))?$")
_HANDED_THING = re.compile(r"^\{\}")


def faults(message: str, *, filled: bool = True) -> list[str]:
    """What is wrong with a message, or, not ``filled``, with a template whose values are ``{}``."""
    thing = _THING.match(message)
    rest = message[thing.end():] if thing else message
    found = []
    if not thing and (filled or not _HANDED_THING.search(message)):
        found.append("names no thing before a colon or an equals sign")
    said = _REMEDY.search(_NO_REQUEST.sub("", rest)) or _CHOICES.search(rest)
    if not said and (filled or not _HANDED_REMEDY.search(message)):
        found.append("says no remedy")
    return found
