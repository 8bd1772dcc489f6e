"""PubChem compounds with descriptions -> "Please describe this molecule.", as PubChemQA asks.

Files are SDF (fields `PUBCHEM_COMPOUND_CID`, `PUBCHEM_SMILES`, ... of PubChem's own dumps), tables (`.csv`, `.tsv`) or
JSON rows (`.jsonl`, or a list in `.json`); any may be `.gz`. Columns and keys go by their usual names, in any case:
CID; SMILES; description or text; title or name. A file of structures and a file of descriptions are joined by CID.
A compound may have several descriptions: each is a question of its own.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem, rdBase

from align.molecules import rdkit_reason
from align.questions import MOLECULE_QUESTION, Question
from align.readers.text import Row, column, read_json_rows, read_table, short_hash, suffix_of
from data_shards.articles import Reject, RejectHandler
from data_shards.readers.streams import read_lines
from job.errors import InputError

SUFFIXES = (".sdf", ".csv", ".tsv", ".txt", ".json", ".jsonl")
_CID = ("cid", "pubchem_compound_cid", "pubchem_cid", "compound_cid")
_SMILES = (
    "smiles", "isosmiles", "isomericsmiles", "isomeric_smiles", "canonicalsmiles", "canonical_smiles", "pubchem_smiles",
    "pubchem_openeye_iso_smiles", "pubchem_openeye_can_smiles",
)  # fmt: skip
_TEXT = ("description", "descriptions", "text", "pubchem_description", "pubchem_compound_description", "caption")
_NAME = ("title", "name", "cmpdname", "compound_name", "iupacname", "iupac_name", "pubchem_iupac_name", "synonym")

THIS_MOLECULE = "This molecule"
_SUBJECT = re.compile(
    r"(?:(?:The|An?) )?(?!(?:It|This|These|They|In|At) )(?P<name>[^\s;]*[^\s;:.](?: [^\s;]*[^\s;:.]){0,7}?)"
    r"(?:,? also (?:known|called|named|referred to)(?: as)? (?P<aliases>[^;]{2,160}?),)? "
    r"(?=(?:is|are|was|were|has|have|appears?|belongs?|acts?|occurs?|can|may|derives?|contains?)\b)"
)
_OR = re.compile(r",? or |, ")  # a comma inside a systematic name has no blank after it
_GENERIC = re.compile(r"(?:this|the|it|these|a|an)\b(?: (?:molecule|compound|drug|substance|chemical))?", re.I)


class _Compound(NamedTuple):
    """One row of any file; what it lacks is empty."""

    file: str
    position: str
    cid: str
    smiles: str
    text: str
    names: tuple[str, ...]


def read(paths: Sequence[Path], on_reject: RejectHandler, replace_names: bool = False) -> Iterator[tuple[str, Row]]:
    """(file name, question) per compound and description; ids are `pubchem:CID:` and a hash of the description.

    Args:
        paths: files of any of the kinds; those without descriptions serve to look up structures.
        on_reject: told of malformed rows, and of descriptions whose CID has no structure.
        replace_names: the compound's own name in its description becomes "This molecule" (see `hide_name`).

    Raises `InputError` where a file is of no known kind or has no CID, or no file has descriptions.
    """
    smiles_of: dict[str, str] = {}
    names_of: dict[str, tuple[str, ...]] = {}
    waiting: list[_Compound] = []
    any_text = False
    for path in paths:
        for compound in _compounds(path, on_reject):
            any_text |= bool(compound.text)
            if compound.text and compound.smiles:
                yield compound.file, _row(compound, compound.smiles, compound.names, replace_names)
            elif compound.text:
                waiting.append(compound)
            elif compound.smiles:
                smiles_of[compound.cid], names_of[compound.cid] = compound.smiles, compound.names
    for compound in waiting:
        if smiles := smiles_of.get(compound.cid):
            yield compound.file, _row(compound, smiles, compound.names + names_of[compound.cid], replace_names)
        else:
            on_reject(Reject(compound.file, compound.position, "no_structure", f"CID {compound.cid} has no SMILES"))
    if not any_text:
        raise InputError(f"{', '.join(map(str, paths))}: no row has a description (looked for {', '.join(_TEXT)})")


def _row(compound: _Compound, smiles: str, names: tuple[str, ...], replace_names: bool) -> Row:
    answer = hide_name(compound.text, names) if replace_names else compound.text
    identifier = f"pubchem:{compound.cid}:{short_hash(compound.text)[:8]}"
    return Row(Question(identifier, MOLECULE_QUESTION, answer, (smiles,)), compound.position)


def hide_name(text: str, names: Sequence[str] = ()) -> str:
    """The description with the compound's own name replaced by "This molecule", so that it cannot be copied.

    Its name is each of `names`, and the subject of the first sentence ("Aspirin is a ...", "Aspirin, also known as ASA
    or acetosal, is ..."; at most eight words), unless that is generic ("The molecule is ..."). Later occurrences become
    "this molecule". Names inside longer words stay, as do names of fewer than three letters but for the subject.
    """
    text = html.unescape(text)
    subject = _SUBJECT.match(text)
    if subject and not _GENERIC.fullmatch(text[: subject.end()].strip()):
        own = subject["name"]
        text = f"{THIS_MOLECULE} {text[subject.end() :]}"
        names = [*names, own.rstrip(","), *_OR.split(subject["aliases"] or "")]
    for name in sorted({name.strip() for name in names}, key=len, reverse=True):
        if len(name) > 2 and not _GENERIC.fullmatch(name):
            pattern = rf"(?<![\w-])(?:(?:the|an?) )?{re.escape(name)}(?![\w-])"
            text = re.sub(pattern, _in_sentence, text, flags=re.I)
    return text


def _in_sentence(match: re.Match[str]) -> str:
    """Capitalised where a sentence begins."""
    before = match.string[: match.start()].rstrip()
    return THIS_MOLECULE if not before or before.endswith((".", "!", "?")) else THIS_MOLECULE.lower()


def _compounds(path: Path, on_reject: RejectHandler) -> Iterator[_Compound]:
    kind = suffix_of(path)
    if kind == ".sdf":
        yield from _read_sdf(path, on_reject)
        return
    if kind in (".json", ".jsonl"):
        rows: Iterator[tuple[str, dict[str, Any]]] = read_json_rows(path, on_reject)
    elif kind in (".csv", ".tsv", ".txt"):
        rows = read_table(path, on_reject, delimiter="," if kind == ".csv" else "\t", quoted=kind == ".csv")
    else:
        raise InputError(
            f"{path} is no file of compounds: its name must end in {', '.join(SUFFIXES)} (or those with .gz)"
        )
    for position, row in rows:
        compound = _compound(path, position, row)
        if compound is None:
            on_reject(Reject(path.name, position, "no_cid", f"no {' or '.join(_CID)} in {', '.join(map(str, row))}"))
        else:
            yield compound


def _compound(path: Path, position: str, row: dict[str, Any]) -> _Compound | None:
    def value(names: tuple[str, ...]) -> str:
        found = column(row, names)
        return str(row[found]).strip() if found is not None and row[found] is not None else ""

    cid = value(_CID)
    names = tuple(name for key in _NAME if (name := value((key,))))
    return _Compound(path.name, position, cid, value(_SMILES), value(_TEXT), names) if cid else None


def _read_sdf(path: Path, on_reject: RejectHandler) -> Iterator[_Compound]:
    """Records of an SDF file, one in memory at a time; where they have no SMILES field, RDKit writes it."""
    lines: list[bytes] = []
    number = 1
    for line in read_lines(path):
        lines.append(line)
        if line.rstrip() == b"$$$$":
            if compound := _parse_sdf(path, f"record {number}", b"\n".join(lines) + b"\n", on_reject):
                yield compound
            lines = []
            number += 1
    if any(line.strip() for line in lines):
        raise InputError(f"{path} ends inside record {number}: no line '$$$$'; download it again")


def _parse_sdf(path: Path, position: str, record: bytes, on_reject: RejectHandler) -> _Compound | None:
    with rdBase.CaptureErrorLog() as log:
        molecule = next(iter(Chem.ForwardSDMolSupplier(io.BytesIO(record))), None)
    if molecule is None:
        on_reject(Reject(path.name, position, "invalid molecule", rdkit_reason(log.messages)))
        return None
    compound = _compound(path, position, molecule.GetPropsAsDict(includePrivate=False, autoConvertStrings=False))
    if compound is None:
        on_reject(Reject(path.name, position, "no_cid", f"no field {' or '.join(_CID)}"))
        return None
    return compound if compound.smiles else compound._replace(smiles=Chem.MolToSmiles(molecule))
