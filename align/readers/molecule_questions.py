"""Questions about structures in JSON: rows with their structures, and ChEMBL-QA's `{SMILES: [[q, a], ...]}`.

Rows are a list in a `.json` file or one a line in a `.jsonl` file: `{"smiles": ..., "question": ..., "answer": ...}`
(OpenBioMed's `MQA`), or with `"sequence"` for proteins. Either may be a list, then the question is about several.
ChEMBL-QA (DrugChat) is one object per file; its answers may be numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.questions import Question
from align.readers.text import Row, read_json_file, read_json_rows, short_hash
from data_shards.articles import Reject, RejectHandler

_MOLECULE_KEYS = ("smiles", "SMILES", "molecules")
_PROTEIN_KEYS = ("sequence", "sequences", "proteins")


def read_rows(path: Path, on_reject: RejectHandler) -> Iterator[Row]:
    """Rows with structures, question, answer and maybe an `id` (where there is none: a hash of the content)."""
    for position, row in read_json_rows(path, on_reject):
        molecules, proteins = _texts(row, _MOLECULE_KEYS), _texts(row, _PROTEIN_KEYS)
        if molecules is None or proteins is None or not molecules + proteins:
            detail = "no 'smiles' and no 'sequence' that is text or a list of texts"
            on_reject(Reject(path.name, position, "malformed_record", detail))
        elif not isinstance(row.get("question"), str) or not is_answer(row.get("answer")):
            on_reject(Reject(path.name, position, "malformed_record", "no 'question' or no 'answer'"))
        else:
            question, answer = row["question"].strip(), str(row["answer"]).strip()
            identifier = str(row.get("id") or short_hash(*molecules, "", *proteins, question, answer))
            yield Row(Question(identifier, question, answer, molecules, proteins), position)


def _texts(row: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, ...] | None:
    """The text or texts under the first of these keys that is there; None where they are no texts."""
    value: Any = next((row[key] for key in keys if key in row), [])
    texts = value if isinstance(value, list) else [value]
    return tuple(texts) if all(isinstance(text, str) for text in texts) else None


def read_chembl_qa(path: Path, on_reject: RejectHandler) -> Iterator[Row]:
    """`{SMILES: [[question, answer], ...]}`. Raises `InputError` where the file is no such object."""
    content = read_json_file(path, dict, "an object {SMILES: [[question, answer], ...]}")
    for number, (smiles, pairs) in enumerate(content.items()):
        for place, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
            position = f"molecule {number}, question {place}"
            if not is_pair(pair):
                on_reject(Reject(path.name, position, "malformed_record", "not [question, answer]"))
                continue
            question, answer = pair[0].strip(), str(pair[1]).strip()
            identifier = short_hash(smiles, question, answer)
            yield Row(Question(f"chemblqa:{identifier}", question, answer, (smiles,)), position)


def is_pair(value: Any) -> bool:
    """Whether this is [question, answer]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and is_answer(value[1])


def is_answer(value: Any) -> bool:
    """Whether this is text or a number (no truth value)."""
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)
