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
from eval.qa.pubmedqa import LABELS

_SHORTEST_SPELLED = 4
"""characters; shorter options ("II", "10", "No") occur in any text, so they have to be the whole first line"""

_OPEN, _CLOSE = "[\"'(\\[]*", "[\"')\\]]*"
_NEXT_QUESTION = re.compile(r"(?:^|\n)\s*(?:Question|Abstract|###\s*Human)\b", re.IGNORECASE)
# What generation ends with, where the end token is written out.
_END_TOKEN = re.compile(r"</?s>|<\|[^|<>\s]{1,40}\|>|<(?:eos|bos|end_of_turn|start_of_turn)>")
# How models are often asked to mark their final answer: \boxed{B}, <answer>B</answer>.
_MARKED = re.compile(
    r"\$*\\boxed\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\{)?([^{}]*)\}{1,2}\$*|<answer>(.*?)(?:</answer>|$)",
    re.IGNORECASE | re.DOTALL,
)
# "answer:", "the correct option is", "the best choice would be:"
_STATED = re.compile(
    r"\b(?:answer|choice|option|conclusion)s?\b[^.\n?:=]{0,30}?"
    r"(?:\b(?:is|would be|should be|must be)\b\s*[:=]?|[:=])\s*",
    re.IGNORECASE,
)
# "It's B", "I'd go with B"
_CHOSEN = re.compile(
    r"\b(?:it(?:'s| is| must be| should be| would be)|"
    r"i(?:'d| would|'ll| will| am going to)?\s+(?:go with|choose|pick|select|answer|say))\s*:?\s*",
    re.IGNORECASE,
)
_BEFORE_WORDS = re.compile(rf"(?:(?:probably|most likely|likely|clearly|the|an?)\s+)*{_OPEN}", re.IGNORECASE)
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

# "no" is an answer only before these: "no difference" and "no evidence" are statements, which may mean either.
_NO = (
    r"no(?=\s*(?:$|[.,;:!)/\]\"'\n—–-]|"
    r"(?:because|since|as|it|they|he|she|this|these|that|there|we|the|in|and|or)\b))"
)
_DECISION = re.compile(rf"{_OPEN}\b(yes|maybe|{_NO})\b", re.IGNORECASE)
_HEDGED = re.compile(rf"(?:(?:probably|most likely|likely|clearly|a)\s+)?{_OPEN}(yes|maybe|{_NO})\b", re.IGNORECASE)
_REPEATED = re.compile(r"\b(yes|no|maybe)\1+\b", re.IGNORECASE)
_SEVERAL = re.compile(
    rf"\b(?:yes|maybe|{_NO})(?:(?:\s*(?:[/,;.]|\bor\b|\band\b|\bbut\b)|[^\S\n]*\n)+\s*(?:yes|maybe|{_NO})\b)+",
    re.IGNORECASE,
)


def parse(text: str, options: Sequence[str]) -> int | None:
    """Number of the option that a generated text answers with; None where it answers with none, or with several.

    Args:
        text: what the model wrote after the prompt.
        options: the answers to choose from; where they are all of yes, no and maybe, these words are looked for, else
            letters (the first option is A) and the options' own words.
    """
    text = next((part for part in _END_TOKEN.split(text) if part.strip()), "")
    text = _plain(_NEXT_QUESTION.split(text, maxsplit=1)[0])
    if options and all(option.casefold() in LABELS for option in options):
        words = [option.casefold() for option in options]
        said = _decision(text)
        return words.index(said) if said in words else None
    if _repeats_options(text, options):
        return None
    alone = _whole_line(text, options)
    if alone is not None:
        return alone
    for evidence in (_stated, _leading_letters, _chosen_letters, _marked_letters, _spelled_options):  # strongest first
        if found := evidence(text, options):
            return found.pop() if len(found) == 1 else None
    return None


def _plain(text: str) -> str:
    """One form of quotes, blanks and final answers, and no Markdown emphasis."""
    text = unicodedata.normalize("NFKC", text)
    text = text.translate(str.maketrans("‘’“”", "''\"\""))
    text = _MARKED.sub(lambda found: f" answer: {(found[1] or found[2] or '').strip()}\n", text)
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


def _repeats_options(text: str, options: Sequence[str]) -> bool:
    """Whether a text begins with a list of options: "A. Heparin B. Aspirin", "(A) Heparin (B) Aspirin", "A B C".

    What follows such a list may still name one ("... The answer is B"): then it is no mere repetition.
    """
    if _STATED.search(text) or _CHOSEN.search(text):
        return False
    item = re.compile(rf"{_OPEN}{_letters(options).upper()}(?:[).:\]]+|(?=\s|$))\s*")
    listed: set[int] = set()
    place = 0
    while match := item.match(text, place):
        number = LETTERS.index(match[1])
        own = re.compile(r"\W+".join(map(re.escape, _words(options[number]))) + r"\W*", re.IGNORECASE)
        words = own.match(text, match.end())
        if words is None and "\n" not in match[0] and match.end() < len(text):
            break
        listed.add(number)
        place = match.end() if words is None else words.end()
    return len(listed) > 1


def _stated(text: str, options: Sequence[str]) -> set[int]:
    """What statements name, "the answer is (B)" or "the answer is heparin"; the last alone where it is called final."""
    found: list[set[int]] = []
    final = False
    for statement in _STATED.finditer(text):
        letter = _letter_after(text, statement.end(), options)
        named = {letter} if letter is not None else _words_after(text, statement.end(), options)
        if named:
            found.append(named)
            final = _FINAL.search(text[: statement.start() + 1]) is not None
    return found[-1] if final else set().union(*found)


def _chosen_letters(text: str, options: Sequence[str]) -> set[int]:
    """Letters in "It's B" and "I'd go with B"."""
    letters = (_letter_after(text, match.end(), options) for match in _CHOSEN.finditer(text))
    return {letter for letter in letters if letter is not None}


def _letter_after(text: str, place: int, options: Sequence[str]) -> int | None:
    """The option whose letter begins at a place of the text."""
    letter = re.compile(rf"(?:(?:option|choice|letter)\s*)?{_OPEN}{_letters(options)}(?![A-Za-z0-9])", re.IGNORECASE)
    match = letter.match(text, place)
    return LETTERS.index(match[1].upper()) if match and _stands_for_option(text, match, options) else None


def _words_after(text: str, place: int, options: Sequence[str]) -> set[int]:
    """The options whose words begin at a place of the text, the longest ones; several where they are listed.

    Of options too short to be found anywhere, the words have to be the whole sentence.
    """
    if before := _BEFORE_WORDS.match(text, place):
        place = before.end()
    sentence = re.split(r"\n|[.;!?](?:\s|$)", text[place:], maxsplit=1)[0]
    said = _words(sentence)
    found: set[int] = set()
    while fitting := {number: count for number, option in enumerate(options) if (count := _begins(said, option))}:
        longest = max(fitting.values())
        rest = said[longest:]
        if _IS_NOT.match(" ".join(rest[:4])):
            return set()
        found |= {number for number, count in fitting.items() if count == longest}
        said = rest[1:]
        if rest[:1] not in (["or"], ["and"]):
            break
    return found


def _begins(said: Sequence[str], option: str) -> int:
    """How many words the option has, where the text begins with them."""
    wanted = _words(option)
    if len(wanted) == 1 and len(wanted[0]) == 1 and wanted[0].upper() in LETTERS:
        return 0
    whole = said == wanted or len(" ".join(wanted)) >= _SHORTEST_SPELLED
    return len(wanted) if whole and said[: len(wanted)] == wanted else 0


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
