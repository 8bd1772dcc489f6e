"""UniProtQA as published: one object `{accession: {"sequence": "M...", "data": [[question, answer], ...]}}` a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from align.questions import PROTEIN_QUESTIONS, Question
from align.readers.molecule_questions import is_pair
from align.readers.text import Row, read_json_file, short_hash
from data_shards.articles import Reject, RejectHandler

_NAMES = {text: name for name, text in PROTEIN_QUESTIONS.items()}


def read(path: Path, on_reject: RejectHandler) -> Iterator[Row]:
    """Every question of every protein; ids end in the question's name (`uniprot:P12345:function`).

    Raises `InputError` where the file is no such object.
    """
    content = read_json_file(path, dict, 'an object {accession: {"sequence": ..., "data": [[question, answer], ...]}}')
    for accession, entry in content.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sequence"), str):
            on_reject(Reject(path.name, accession, "malformed_record", "no 'sequence'"))
            continue
        if not isinstance(entry.get("data"), list):
            on_reject(Reject(path.name, accession, "malformed_record", "no list 'data'"))
            continue
        asked: Counter[str] = Counter()
        for place, pair in enumerate(entry["data"]):
            position = f"{accession}, question {place}"
            if not is_pair(pair):
                on_reject(Reject(path.name, position, "malformed_record", "not [question, answer]"))
                continue
            question, answer = pair[0].strip(), str(pair[1]).strip()
            name = _NAMES.get(question) or short_hash(question)
            asked[name] += 1
            identifier = f"uniprot:{accession}:{name}" + (f":{asked[name]}" if asked[name] > 1 else "")
            yield Row(Question(identifier, question, answer, proteins=(entry["sequence"],)), position)
