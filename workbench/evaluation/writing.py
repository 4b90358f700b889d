"""What instructions on writing count: sentences, words in capitals, and the language of a text."""

import re
from functools import lru_cache
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ABBREVIATIONS = _words(
    "mr mrs ms dr prof rev gen col maj capt cpt cmdr lt sgt gov sen rep hon st jr sr co corp inc ltd bros messrs vs "
    "etc cf al ca approx est dept fig vol pp ed ave blvd rd mt ft jan feb mar apr aug sep sept oct nov dec mon tue wed "
    "thu fri sat sun ph.d m.d b.a m.a d.c u.s u.k u.n e.g i.e a.m p.m"
)
"""Words whose period does not end a sentence, unless a word that opens one follows."""

OPENERS = _words(
    "the this that these those it he she they we you i in on at for but and so as if when while after before however "
    "there here what why how who to with from by my his her our their one no not all some many most also then now "
    "although because since once let"
)
"""Words that open a sentence where they are capitalized after an abbreviation or an ellipsis."""

OPENING = "\"'([{*“‘"
CLOSERS = " \t\r\n\"'”’)]}*"  # what belongs to the sentence before it

# A run up to a mark that may end a sentence, where a blank and more text or a closing sign comes after it.
_ENDING = re.compile(r"(\S*?)([.?!]+)(?=[)\";}\]*:@'({\[•]|\s+(\S+))")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]", re.UNICODE)

# What the Treebank tokenizer parts, as far as it changes the number of words in capitals.
_APART = re.compile(r"--|\.{2,}|[«“‘„»”’;@#$%&?!*\[\](){}<>\"`]|[:,](?!\d)")
_CONTRACTED = re.compile(r"(?<=[^' ])('[sSmMdD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?=\s|$)")
_JOINED = re.compile(r"\b(?:(CAN)(NOT)|(GIM)(ME)|(GON)(NA)|(GOT)(TA)|(LEM)(ME)|(WAN)(NA))\b")


def count_sentences(text: str) -> int:
    """The number of sentences of an English text, by rules in the manner of Punkt (Kiss and Strunk 2006).

    A mark of ".?!" with a blank after it ends a sentence, even where a small letter follows. Not so a period after an
    abbreviation, initials or an ellipsis, unless a capitalized word that opens sentences follows, nor a period after a
    number that a small letter follows. What is left at the end is a sentence, too.
    """
    ends = [match.end() for match in _ENDING.finditer(text) if _ends(*match.groups())]
    left = text[ends[-1] :] if ends else text
    return len(ends) + bool(left.strip(CLOSERS))


def count_capital_words(text: str) -> int:
    """The words in capitals, as the Treebank tokenizer parts words: "DON'T" is two, "U.S.A." and "A-B" are one."""
    parted = _CONTRACTED.sub(r" \1", _APART.sub(" ", text))
    parted = _JOINED.sub(lambda match: " ".join(filter(None, match.groups())), parted)
    return sum(word.isupper() for word in parted.split())


@lru_cache(maxsize=4096)
def language_of(text: str) -> str | None:
    """The language of a text as an ISO 639-1 code, by langdetect, drawn with a fixed seed; None if it cannot tell."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _languages().create()
    detector.append(text)
    try:
        return detector.detect()
    except LangDetectException:
        return None


@lru_cache(maxsize=1)
def _languages() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = 0  # of this factory alone: the library's own draws anew each time
    return factory


def _ends(word: str, marks: str, after: str | None) -> bool:
    """Whether marks end a sentence, by the word before them and, where a blank follows, the one after it."""
    bare, following = word.lower().lstrip(OPENING), (after or "").lstrip(OPENING)
    opens = following[:1].isupper() and re.split(r"\W", following)[0].lower() in OPENERS
    if set(marks) != {"."}:
        return True
    if len(marks) > 1:
        return opens
    if bare in ABBREVIATIONS or _INITIALS.fullmatch(bare):
        return opens
    return not (bare.isdigit() and following[:1].islower())
