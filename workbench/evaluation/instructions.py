"""The 25 instructions of IFEval that a program can check (Zhou et al. 2023, 2311.07911).

Each is a function of an answer, without which there is nothing to follow, and of the instruction's own arguments. What
follows an instruction is what the authors' program accepts, its oddities included: keywords are regular expressions, a
number of highlights counts `**bold**` twice, an undetected language is the right one. Where they replace an argument by
a drawn one, as the "letter" ``!``, here the row counts as it is.
"""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.evaluation.writing import count_capital_words, count_sentences, language_of

CHECKS: dict[str, Callable[..., bool]] = {}
"""The check of each instruction, by its name in the data."""

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def follows(instruction: str, answer: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an answer follows an instruction.

    Args:
        instruction: Its name in `CHECKS`, such as ``"keywords:existence"``.
        answer: A blank one follows none.
        arguments: Those of the instruction, by the names in the data.

    Raises:
        ValueError: There is no such instruction, or the arguments are not its own.
    """
    if instruction not in CHECKS:
        raise ValueError(f"Expected one of the instructions {', '.join(CHECKS)}, got {instruction!r}.")
    expected = list(inspect.signature(CHECKS[instruction]).parameters)[1:]
    if sorted(arguments) != sorted(expected):
        raise ValueError(f"{instruction}: expected the arguments {expected}, got {dict(arguments)}.")
    return bool(answer.strip()) and CHECKS[instruction](answer, **arguments)


def _check(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def named(check: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = check
        return check

    return named


def _compared(n: int, relation: str, threshold: int) -> bool:
    if relation not in RELATIONS:
        raise ValueError(f"relation: expected one of {RELATIONS}, got {relation!r}.")
    return n < threshold if relation == "less than" else n >= threshold


@_check("keywords:existence")
def _existence(answer: str, keywords: Sequence[str]) -> bool:
    return all(re.search(keyword, answer, re.IGNORECASE) for keyword in keywords)


@_check("keywords:frequency")
def _frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(len(re.findall(keyword.strip(), answer, re.IGNORECASE)), relation, frequency)


@_check("keywords:forbidden_words")
def _forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", answer, re.IGNORECASE) for word in forbidden_words)


@_check("keywords:letter_frequency")
def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(Counter(answer.lower())[letter.strip().lower()], let_relation, let_frequency)


@_check("language:response_language")
def _response_language(answer: str, language: str) -> bool:
    return language_of(answer) in (language, None)


@_check("length_constraints:number_sentences")
def _number_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _compared(count_sentences(answer), relation, num_sentences)


@_check("length_constraints:number_paragraphs")
def _number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", answer)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


@_check("length_constraints:number_words")
def _number_words(answer: str, num_words: int, relation: str) -> bool:
    return _compared(len(re.findall(r"\w+", answer)), relation, num_words)


@_check("length_constraints:nth_paragraph_first_word")
def _nth_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [part.strip() for part in answer.split("\n\n")]
    n_filled = sum(map(bool, paragraphs))
    if not 1 <= nth_paragraph <= n_filled or not paragraphs[nth_paragraph - 1]:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return n_filled == num_paragraphs and re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


@_check("detectable_content:number_placeholders")
def _number_placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


@_check("detectable_content:postscript")
def _postscript(answer: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    usual = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(usual.get(marker, marker.lower()), answer.lower()))


@_check("detectable_format:number_bullet_lists")
def _number_bullet_lists(answer: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", answer, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


@_check("detectable_format:constrained_response")
def _constrained_response(answer: str) -> bool:
    return any(option in answer for option in OPTIONS)


@_check("detectable_format:number_highlighted_sections")
def _number_highlighted_sections(answer: str, num_highlights: int) -> bool:
    single = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", answer)]
    double = [found.removeprefix("**").removesuffix("**") for found in re.findall(r"\*\*[^\n\*]*\*\*", answer)]
    return sum(bool(found.strip()) for found in [*single, *double]) >= num_highlights


@_check("detectable_format:multiple_sections")
def _multiple_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", answer)) >= num_sections


@_check("detectable_format:json_format")
def _json_format(answer: str) -> bool:
    bare = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except ValueError:
        return False
    return True


@_check("detectable_format:title")
def _title(answer: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", answer))


@_check("combination:two_responses")
def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


@_check("combination:repeat_prompt")
def _repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_check("startend:end_checker")
def _end_checker(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_check("startend:quotation")
def _quotation(answer: str) -> bool:
    bare = answer.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


@_check("change_case:capital_word_frequency")
def _capital_word_frequency(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compared(count_capital_words(answer), capital_relation, capital_frequency)


@_check("change_case:english_capital")
def _english_capital(answer: str) -> bool:
    return answer.isupper() and language_of(answer) in ("en", None)


@_check("change_case:english_lowercase")
def _english_lowercase(answer: str) -> bool:
    return answer.islower() and language_of(answer) in ("en", None)


@_check("punctuation:no_comma")
def _no_comma(answer: str) -> bool:
    return "," not in answer
