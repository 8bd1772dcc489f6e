"""BioGPT's relation texts: from triples to the sentence a model has to write, and from what it wrote back to triples.

Templates: microsoft/BioGPT, examples/RE-{BC5CDR,DTI,DDI}/rebuild_data.py. There are two ways back.

`parse` cuts the answer at the opening words, ends a statement at the closing words, and where a pair has several
" and " chooses the one whose two sides both occur in the document. It gives gold answers back exactly.

`parse_as_authors` is their postprocess.py: it cuts at ";" and matches greedily, so that names with ";" or " and " are
lost (gold answers of the BC5CDR test come back with F1 0.981). Published numbers were made with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Relation(NamedTuple):
    """Two names (or ids) and how they are related."""

    head: str
    """the chemical or drug"""
    tail: str
    """the disease, target or second drug"""
    label: str
    """the interaction; "" where the template has only one relation"""


@dataclass(frozen=True)
class Template:
    """How relations are written."""

    opening: str
    statement: str
    """of one relation, with {head}, {tail} and {label}"""
    closing: re.Pattern[str]
    """the two names, what ends them, and the label; an answer may go on after it"""
    authors_separator: str
    """regular expression at which the authors cut the answer"""
    authors_pattern: str
    """their pattern of one relation"""


BC5CDR = Template(
    opening="the relation between",
    statement="the relation between {head} and {tail} exists",
    closing=re.compile(r"(.*?)\sexists(?=[.;\s]|$)", re.DOTALL),
    authors_separator=r";\s*",
    authors_pattern=r"the relation between (.*) and (.*) exists",
)
INTERACTION = Template(
    opening="the interaction between",
    statement="the interaction between {head} and {tail} is {label}",
    closing=re.compile(r"(.*?)\sis\s(.+?)(?=[.;](?:\s|$)|$)", re.DOTALL),
    authors_separator=r"; ",
    authors_pattern=r"the interaction between (.*) and (.*) is (.*)",
)
"""of KD-DTI and DDI"""

# The soft prompt as fairseq prints it, and the hard prompts that the authors tried in its place (postprocess.py).
_LEADS = (r"(learned[0-9]+ )+", r"we can conclude that", r"we have that", r"in conclusion ?,")


class Parsed(NamedTuple):
    """What was found in an answer."""

    relations: list[Relation]
    malformed: int
    """statements that begin like the template but do not go on like it: cut off, say"""


def target_text(relations: Sequence[Relation], template: Template) -> str:
    """The answer that states these relations, in the order given."""
    return "; ".join(template.statement.format_map(relation._asdict()) for relation in relations) + "."


def parse(answer: str, template: Template, source: str) -> Parsed:
    """Relations stated by an answer about the document `source`, in order; names as written, without outer space."""
    pieces = re.split(rf"\b{template.opening}\s+", strip_lead(answer))[1:]
    document = squeeze(source)
    relations = []
    for piece in pieces:
        found = template.closing.match(piece.rstrip(" .;\n"))
        pair = _split_pair(found[1].strip(), document) if found else None
        if found is None or pair is None:
            continue
        label = found[2].strip() if found.re.groups > 1 else ""
        relations.append(Relation(*pair, label))
    return Parsed(relations, len(pieces) - len(relations))


def parse_as_authors(answer: str, template: Template) -> list[Relation]:
    """Relations as BioGPT's postprocess.py finds them."""
    answer = answer.strip()
    answer = strip_lead(answer.removesuffix("."))
    relations = []
    for sentence in re.split(template.authors_separator, answer):
        found = re.match(template.authors_pattern, sentence)
        if found:
            head, tail, *label = (group.strip() for group in found.groups())
            relations.append(Relation(head, tail, label[0] if label else ""))
    return relations


def strip_lead(answer: str) -> str:
    """The answer after the prompt words that a model may repeat, as the authors cut it: after the last of a kind."""
    for lead in _LEADS:
        if re.search(lead, answer):
            return re.split(lead, answer)[-1].strip()
    return answer.strip()


def squeeze(text: str) -> str:
    """`text` in lower case without white space, which detokenizers put at will."""
    return "".join(text.lower().split())


def _split_pair(pair: str, document: str) -> tuple[str, str] | None:
    """Cut "A and B" in two; None where it cannot be. `document` is squeezed."""
    best, best_rank = None, None
    for place in re.finditer(r"\s(?=and\s)", pair):
        left, right = pair[: place.start()].strip(), pair[place.end() + len("and ") :].strip()
        if not left or not right:
            continue
        found_left, found_right = squeeze(left) in document, squeeze(right) in document
        rank = (
            found_left + found_right,
            _is_balanced(left) + _is_balanced(right),
            len(left) if found_left else 0,  # "iron and iron overload": the longer name that is in the document
        )
        if best_rank is None or rank > best_rank:
            best, best_rank = (left, right), rank
    return best


def _is_balanced(name: str) -> bool:
    return all(name.count(opening) == name.count(closing) for opening, closing in ("()", "[]", "{}"))


def longest_names(ids: Mapping[str, str]) -> dict[str, str]:
    """The longest name of each id, by which BioGPT's targets call it; of names of equal length the first."""
    names: dict[str, str] = {}
    for name, identifier in ids.items():
        if identifier not in names or len(name) > len(names[identifier]):
            names[identifier] = name
    return names


UNKNOWN_ID = "-1"
"""of a name that is in no table, in postprocess.py as in the corpus; such a relation is wrong"""


class NameTable:
    """From the names of chemicals and of diseases to MeSH ids."""

    def __init__(self, chemicals: Mapping[str, str], diseases: Mapping[str, str], exact: bool) -> None:
        """With `exact`, names have to be written as in the table; else case and white space do not count."""
        self._key: Callable[[str], str] = str if exact else squeeze
        self._chemicals = {self._key(name): identifier for name, identifier in chemicals.items()}
        self._diseases = {self._key(name): identifier for name, identifier in diseases.items()}

    def identify(self, relations: Iterable[Relation]) -> set[Relation]:
        """The same relations between ids; `UNKNOWN_ID` for a name that is not in the table."""
        return {
            Relation(
                self._chemicals.get(self._key(head), UNKNOWN_ID), self._diseases.get(self._key(tail), UNKNOWN_ID), label
            )
            for head, tail, label in relations
        }
