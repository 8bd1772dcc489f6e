"""Which answer a generated text gives: a letter, an option's own words, or yes, no and maybe; or none of them.

What cannot be read off the text is None, never a guess: unparsed answers are reported as a share of their own. Words
that are not an answer are not taken for one: the article in "A patient ...", "because" for B, "No difference was ..."
for the answer no, or what stands behind a "not".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from eval.qa.files import LETTERS

UNPARSED_LIMIT = 0.05
"""share of unparsed answers above which a score measures the format of answers, not what is known"""

_SHORTEST_SPELLED = 4
"""characters; shorter options ("II", "10", "No") occur in any text, so they have to be the whole first line"""

_OPEN, _CLOSE = "[\"'(\\[]*", "[\"')\\]]*"
_NEXT_QUESTION = re.compile(r"(?:^|\n)\s*(?:Question|Abstract|###\s*Human)\b", re.IGNORECASE)
# "answer:", "the correct option is", "the best choice would be"
_STATED = re.compile(
    r"\b(?:answer|choice|option|conclusion)s?\b[^.\n?:=]{0,30}?(?:\b(?:is|would be|should be|must be)\b|[:=])\s*",
    re.IGNORECASE,
)
_FINAL = re.compile(r"\b(?:final|therefore|thus|so|hence)\b[^.\n]*$", re.IGNORECASE)
# What stands before something that is denied, and after it.
_NOT = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bnever|\brather than|\binstead of|\bexcept|\brule[sd]? out)\W*"
    r"(?:(?:option|choice|answer|the|an?)\W*)*$",
    re.IGNORECASE,
)
_IS_NOT = re.compile(
    r"\W*(?:is|are|was|seems|would be)\s+(?:clearly\s+|probably\s+)?(?:not\b|n't|incorrect|wrong|false|unlikely|ruled)",
    re.IGNORECASE,
)

_DECISIONS = ("yes", "no", "maybe")
# "no" is an answer only before these: "no difference" and "no evidence" are statements, which may mean either.
_NO = (
    r"no(?=\s*(?:$|[.,;:!)/\]\"'\n—–-]|"
    r"(?:because|since|as|it|they|he|she|this|these|that|there|we|the|in|and|or)\b))"
)
_DECISION = re.compile(rf"{_OPEN}\b(yes|maybe|{_NO})\b", re.IGNORECASE)
_HEDGED = re.compile(rf"(?:(?:probably|most likely|likely|clearly|a)\s+)?{_OPEN}(yes|maybe|{_NO})\b", re.IGNORECASE)
_REPEATED = re.compile(r"\b(yes|no|maybe)\1+\b", re.IGNORECASE)
_SEVERAL = re.compile(rf"\b(?:yes|maybe|{_NO})(?:\s*(?:/|,|\bor\b|\band\b)+\s*(?:yes|maybe|{_NO})\b)+", re.IGNORECASE)


def parse(text: str, options: Sequence[str]) -> int | None:
    """Number of the option that a generated text answers with; None where it answers with none, or with several.

    Args:
        text: what the model wrote after the prompt.
        options: the answers to choose from; where they are all of yes, no and maybe, these words are looked for, else
            letters (the first option is A) and the options' own words.
    """
    text = _plain(_NEXT_QUESTION.split(text, maxsplit=1)[0])
    if options and all(option.casefold() in _DECISIONS for option in options):
        words = [option.casefold() for option in options]
        said = _decision(text)
        return words.index(said) if said in words else None
    alone = _whole_line(text, options)
    if alone is not None:
        return alone
    for evidence in (_stated_letters, _leading_letters, _marked_letters, _spelled_options):  # the strongest first
        if found := evidence(text, options):
            return found.pop() if len(found) == 1 else None
    return None


def _plain(text: str) -> str:
    """One form of quotes and blanks, and no Markdown emphasis."""
    text = unicodedata.normalize("NFKC", text)
    text = text.translate(str.maketrans("‘’“”", "''\"\""))
    return re.sub(r"[*`_]{1,3}(?=\S)|(?<=\S)[*`_]{1,3}", "", text).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[.,'][^\W_]+)*", unicodedata.normalize("NFKC", text).casefold())


def _letters(options: Sequence[str]) -> str:
    """A pattern of the letters that there are, large and small."""
    return f"([{LETTERS[: len(options)]}{LETTERS[: len(options)].lower()}])"


def _whole_line(text: str, options: Sequence[str]) -> int | None:
    """The option whose words are the first line; where options are letters themselves, a letter is not such words."""
    line = _words(text.partition("\n")[0])
    if not line or (len(line) == 1 and line[0].upper() in LETTERS):
        return None
    equal = [number for number, option in enumerate(options) if _words(option) == line]
    return equal[0] if len(equal) == 1 else None


def _stated_letters(text: str, options: Sequence[str]) -> set[int]:
    """Letters in statements such as "the answer is (B)"; only the last of them where that is called final."""
    letter = re.compile(rf"(?:(?:option|choice|letter)\s*)?{_OPEN}{_letters(options)}(?![A-Za-z0-9])", re.IGNORECASE)
    found = []
    final = False
    for statement in _STATED.finditer(text):
        match = letter.match(text, statement.end())
        if match and _stands_for_option(text, match, options):
            found.append(LETTERS.index(match[1].upper()))
            final = _FINAL.search(text[: statement.start() + 1]) is not None
    return {found[-1]} if final else set(found)


def _leading_letters(text: str, options: Sequence[str]) -> set[int]:
    """The letter that an answer begins with: "B", "B.", "(B)", "B) because"; further ones that are listed with it."""
    match = re.match(rf"(?:(?:option|choice)\s+)?{_OPEN}{_letters(options)}(?![A-Za-z0-9'])", text, re.IGNORECASE)
    if match is None or not (_stands_for_option(text, match, options) or _lists(text, match, options)):
        return set()
    number = LETTERS.index(match[1].upper())
    if also := _lists(text, match, options):
        return {number, LETTERS.index(also[1].upper())}
    said = _whole_line(text[match.end() :].lstrip(" )].:-\"',"), options)
    return {number} if said is None else {number, said}  # "B. <the words of C>" gives two answers


def _lists(text: str, match: re.Match[str], options: Sequence[str]) -> re.Match[str] | None:
    """The next letter in "A and B" or "A, B, C"."""
    return re.match(rf"{_CLOSE}\s*(?:,|/|&|and\b|or\b)+\s*{_OPEN}{_letters(options).upper()}\b", text[match.end() :])


def _stands_for_option(text: str, match: re.Match[str], options: Sequence[str]) -> bool:
    """Whether a letter means its option: it is no article, no part of a name, and not denied."""
    rest = text[match.end() :]
    if _IS_NOT.match(rest) or re.match(r"-[A-Za-z]", rest):  # "B is wrong"; "B-cells"
        return False
    if match[0][0] in "([\"'" or re.match(r"(?:option|choice)", match[0], re.IGNORECASE):
        return True
    if re.match(r"\s*(?:$|[\n)\].,;:!?\"'=—–-])", rest):
        return True
    if not match[1].isupper():
        return False
    own_words = _words(options[LETTERS.index(match[1])])
    return _words(rest)[: len(own_words)] == own_words or bool(re.match(r"\s+(?:because|since|is|as|and not)\b", rest))


def _marked_letters(text: str, options: Sequence[str]) -> set[int]:
    """Letters called an option or in brackets, anywhere, that are not denied: "I would choose option B"."""
    letter = re.compile(rf"(?:\b(?i:option|choice|answer)\s+{_OPEN}|[(\[]){_letters(options).upper()}(?![A-Za-z0-9-])")
    return {
        LETTERS.index(match[1])
        for match in letter.finditer(text)
        if not _NOT.search(text[: match.start()]) and not _IS_NOT.match(text[match.end() :].lstrip(")]\"'"))
    }


def _spelled_options(text: str, options: Sequence[str]) -> set[int]:
    """Options whose words occur and are not denied; of options within each other, the longest."""
    words = _words(text)
    spans: list[tuple[int, int, int]] = []
    for number, option in enumerate(options):
        wanted = _words(option)
        if len(" ".join(wanted)) >= _SHORTEST_SPELLED:
            spans += [
                (start, start + len(wanted), number)
                for start in range(len(words) - len(wanted) + 1)
                if words[start : start + len(wanted)] == wanted
            ]
    return {
        number
        for start, end, number in spans
        if not any(a <= start and end <= b and (a, b) != (start, end) for a, b, _ in spans)
        and not _NOT.search(" ".join(words[max(0, start - 3) : start]))
        and not _IS_NOT.match(" ".join(words[end : end + 4]))
    }


def _decision(text: str) -> str | None:
    """yes, no or maybe."""
    text = _REPEATED.sub(r"\1", text)  # "yesyes", of models that repeat themselves
    text = _SEVERAL.sub(_only_word, text)
    stated = {
        match[1].lower()
        for statement in _STATED.finditer(text)
        if (match := _HEDGED.match(text, statement.end())) is not None
    }
    if stated:
        return stated.pop() if len(stated) == 1 else None
    if leading := _DECISION.match(text):
        return leading[1].lower()
    said = {match[1].lower() for match in _DECISION.finditer(text) if not _NOT.search(text[: match.start()])}
    return said.pop() if len(said) == 1 else None


def _only_word(match: re.Match[str]) -> str:
    """Of "yes, yes" the word; of an echo such as "yes, no or maybe", and of "yes and no", nothing."""
    words = {word.lower() for word in re.findall(r"yes|no|maybe", match[0], re.IGNORECASE)}
    return words.pop() if len(words) == 1 else "?"
