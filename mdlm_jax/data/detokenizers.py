"""Text of benchmark corpora as people would write it: the spaces that their makers put around signs taken out again.

The rules are those of SEDD (arXiv 2310.16834) and MDLM (2406.07524), which figures on these corpora follow; they are
applied to each document before the tokenizer. Two differences: a rule of the WikiText list that never fits a text (its
slashes are those of another language) is left out, and the PTB's "N" is replaced wherever it is a word between spaces,
at once instead of in ten passes.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from mdlm_jax.data.sources import Document

Rule = tuple[re.Pattern[str], str]


def _literal(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(re.escape(old)), new.replace("\\", r"\\")) for old, new in pairs)


def _regular(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(old), new) for old, new in pairs)


def _inside(*signs: str) -> tuple[Rule, ...]:
    """No spaces just inside a pair of brackets or quotes."""
    pairs = ((sign[0], sign[1]) for sign in signs)
    return _regular(*((rf"{re.escape(a)}\s*([^{re.escape(b)}]*?)\s*{re.escape(b)}", rf"{a}\1{b}") for a, b in pairs))


def _before(signs: str) -> tuple[Rule, ...]:
    """No space before a sign that one follows."""
    return _literal(*((f" {sign} ", f"{sign} ") for sign in signs))


_WIKITEXT = (
    *_literal(("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *_before(":;.!?,"),
    *_inside("()", "[]", "{}", '""', "''"),
    *_literal(("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \u00b0 ", "\u00b0")),
    *_literal((" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
)
_PTB = (
    *_literal((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    *_regular((r" N(?= )", " 1")),
    *_literal(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
)
_LM1B = (
    *_literal(("http : / / ", "http://"), ("https : / / ", "https://")),
    *_regular((r" '(\w+)", r"'\1"), (r" (\w+) \. ", r" \1. "), (r" (\w+) \.$", r" \1.")),
    *_before("?"),
    *_regular((r" \?$", "?")),
    *_before("!"),
    *_regular((r" !$", "!")),
    *_before(",:;"),
    *_literal((" / ", "/")),
    *_regular((r'" ([^"]+) "', r'"\1"'), (r"' ([^']+) '", r"'\1'")),
    *_regular((r"\( ([^()]+) \)", r"(\1)"), (r"\[ ([^\[\]]+) \]", r"[\1]")),
    *_literal(("$ ", "$"), ("\u00a3 ", "\u00a3")),
)
_LAMBADA = _literal(("\u201c", '"'), ("\u201d", '"'))


def _applied(text: str, rules: Iterable[Rule]) -> str:
    for pattern, new in rules:
        text = pattern.sub(new, text)
    return text


def wikitext(text: str) -> str:
    """Numbers (`@,@`), punctuation, brackets, quotes, headings and degrees joined."""
    return _applied(text, _WIKITEXT)


def ptb(text: str) -> str:
    """Contractions joined; the number N is 1, the unknown word a question mark."""
    return _applied(text, _PTB)


def lm1b(text: str) -> str:
    """Addresses, contractions, punctuation, brackets, quotes and money joined."""
    return _applied(text, _LM1B)


def lambada(text: str) -> str:
    """Straight double quotes, no space at the ends, and a line end before all."""
    return "\n" + _applied(text, _LAMBADA).strip()


def scientific_papers(text: str) -> str:
    """`wikitext`, then `lm1b`."""
    return lm1b(wikitext(text))


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "lm1b": lm1b,
    "wikitext": wikitext,
    "ptb": ptb,
    "lambada": lambada,
    "ag_news": scientific_papers,  # as MDLM's paper says; its code reads AG News as it is
    "scientific_papers": scientific_papers,
}


def detokenized(documents: Iterable[Document], name: str) -> Iterator[Document]:
    """The documents with their texts changed by the rules ``name``; as they are where it is ""."""
    change = DETOKENIZERS[name] if name else None
    for document in documents:
        yield document if change is None else Document(document.name, change(document.text), document.prompt)
