"""`python -m align build KIND FILE... --out DIR`: published files -> questions with structures, checked and split.

    files --reader--> rows --structures checked, duplicates dropped--> questions --groups--> train / validation / test

The output appears whole or not at all, and the same files and settings give the same bytes. Beside the shards lie
`rejects.jsonl` (what was left out, where it was, and why) and `manifest.json` (settings, inputs with checksums, counts,
and how far copying the answer of the nearest training structure gets on the held-out questions).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from align import leakage
from align.clusters import has_mmseqs
from align.molecules import MAX_ATOMS, MoleculeError, featurise
from align.proteins import ProteinError, clean
from align.question_shards import SPLITS, STAGE, write_split
from align.questions import Question
from align.readers import chebi20, molecule_questions, pubchem, uniprot, uniprotqa
from align.readers.text import Reader, Row, short_hash, suffix_of
from align.splits import KINDS, SplitSettings, assign, groups
from data_shards.articles import Reject, RejectHandler
from job import manifest
from job.errors import InputError
from job.files import atomic_directory, atomic_file, sha256_file
from job.progress import ByteProgress
from job.verbs import check_at_least

SOURCES = {
    "pubchemqa": "PubChem compounds with descriptions: .sdf, .csv, .tsv, .json, .jsonl",
    "uniprotqa": "Swiss-Prot (flat file .dat/.txt, or .xml), or the published UniProtQA .json",
    "chebi20": "ChEBI-20 as MolT5 publishes it: CID, SMILES, description between tabs",
    "chemblqa": "ChEMBL-QA: {SMILES: [[question, answer], ...]}",
    "questions": "rows {smiles or sequence, question, answer}: .jsonl, or a list in .json",
}
_EXAMPLES = """examples:
  python -m align build uniprotqa uniprot_sprot.dat.gz --split identity --out data/uniprotqa
  python -m align build uniprotqa --train train.json --test test.json --out data/uniprotqa-published
  python -m align build pubchemqa compounds.sdf.gz descriptions.csv --split scaffold --replace-names --out data/pubchem
  python -m align build chebi20 --train train.txt --validation validation.txt --test test.txt --out data/chebi20
"""


@dataclasses.dataclass(frozen=True)
class _Question:
    """A question on its way into a shard."""

    question: Question
    file: str
    position: str


def main(arguments: list[str]) -> int:
    """The verb."""
    options = _parser().parse_args(arguments)
    given = {split: getattr(options, split) for split in SPLITS if getattr(options, split)}
    inputs = [*options.inputs, *(path for paths in given.values() for path in paths)]
    if not inputs:
        raise InputError("no input file; give files to split, or --train, --validation and --test files")
    if options.inputs and "train" in given:
        raise InputError("give either --train files or files to split, not both")
    for path in inputs:
        if not path.is_file():
            raise InputError(f"input file {path} does not exist")
    split = _split_settings(options, given)
    settings = _settings(options, given, split)
    sources = [{"path": str(path), "sha256": sha256_file(path)} for path in inputs]
    if (options.out / manifest.NAME).is_file():
        _refuse_or_accept(options.out, settings, sources)
        print(f"{options.out} holds these questions already; nothing to do")
        return 0
    with atomic_directory(options.out) as directory:
        summary = _build(directory, options, given, split, settings, sources)
    _show(summary, options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {name:<10} {text}" for name, text in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="python -m align build",
        description="Turn published files about molecules and proteins into questions for `python -m align train`.\n"
        f"\nkinds of source:\n{kinds}\nAny file may end in .gz or .zst.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=SOURCES, metavar="KIND", help="kind of source, see above")
    parser.add_argument("inputs", nargs="*", type=Path, metavar="FILE", help="files to read and split")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to make")
    for split in SPLITS:
        help_text = f"published {split} split: kept as it is"
        parser.add_argument(f"--{split}", nargs="+", type=Path, default=[], metavar="FILE", help=help_text)
    parser.add_argument("--split", default="random", choices=KINDS, help="what stays together (default: random: only "
                        "the same structure; scaffold: molecules; identity: similar proteins)")  # fmt: skip
    parser.add_argument("--validation-fraction", type=float, default=0.05, help="of the questions (default: 0.05)")
    parser.add_argument("--test-fraction", type=float, default=0.1, help="of the questions (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of random and identity splits (default: 0)")
    parser.add_argument("--identity", type=float, default=0.5, help="sequence identity from which proteins stay "
                        "together, 0 to 1 (default: 0.5)")  # fmt: skip
    parser.add_argument("--clusters", default="auto", choices=("auto", "mmseqs2", "kmers"), help="how --split identity "
                        "finds similar proteins (default: auto: mmseqs2 where it is installed)")  # fmt: skip
    parser.add_argument("--replace-names", action="store_true", help="pubchemqa: a compound's own name in its "
                        'description becomes "This molecule"')  # fmt: skip
    parser.add_argument("--max-atoms", type=int, default=MAX_ATOMS, help="leave out molecules with more heavy atoms "
                        f"(default: {MAX_ATOMS})")  # fmt: skip
    parser.add_argument("--leakage-sample", type=int, default=1000, metavar="COUNT", help="held-out questions of each "
                        "split for which copying is tried (default: 1000; 0: none)")  # fmt: skip
    return parser


def _split_settings(options: argparse.Namespace, given: dict[str, list[Path]]) -> SplitSettings:
    """Fractions of splits that files give are 0: the rest is dealt among the others. Raises `InputError`."""
    check_at_least(options, max_atoms=1)
    if not 0 < options.identity <= 1:
        raise InputError(f"--identity must be above 0 and at most 1, not {options.identity}")
    clusters = options.clusters
    if clusters == "auto":
        clusters = "mmseqs2" if has_mmseqs() else "kmers"
    return SplitSettings(
        options.split,
        0.0 if "validation" in given else options.validation_fraction,
        0.0 if "test" in given else options.test_fraction,
        options.seed,
        options.identity,
        clusters,
    )


def _settings(options: argparse.Namespace, given: dict[str, list[Path]], split: SplitSettings) -> dict[str, Any]:
    """What the output depends on besides the files' content."""
    return {
        "kind": options.kind,
        "files": {"split": len(options.inputs)} | {name: len(paths) for name, paths in given.items()},
        "split": dataclasses.asdict(split),
        "replace_names": options.replace_names,
        "max_atoms": options.max_atoms,
        "leakage_sample": options.leakage_sample,
    }


def _refuse_or_accept(directory: Path, settings: dict[str, Any], sources: list[dict[str, str]]) -> None:
    """Raise `InputError` unless the finished build there is the one asked for."""
    found = manifest.read(directory, STAGE)
    same_inputs = [entry["sha256"] for entry in found["inputs"]] == [entry["sha256"] for entry in sources]
    if found["config"] != settings or not same_inputs:
        what = "settings" if same_inputs else "input files"
        raise InputError(f"{directory} holds a build with other {what}; remove it, or choose another --out")


def _build(
    directory: Path,
    options: argparse.Namespace,
    given: dict[str, list[Path]],
    split: SplitSettings,
    settings: dict[str, Any],
    sources: list[dict[str, str]],
) -> dict[str, Any]:
    rejects: list[Reject] = []
    counts: Counter[str] = Counter()
    with ByteProgress() as progress:
        progress.start("reading", sum(Path(entry["path"]).stat().st_size for entry in sources))
        seen: set[str] = set()
        parts: dict[str, list[_Question]] = {}
        # Held-out files first: a question that a published training split repeats is dropped there.
        for name, paths in {
            **{name: given[name] for name in reversed(SPLITS) if name in given},
            "": options.inputs,
        }.items():
            rows = _read(options, paths, rejects.append, progress)
            parts[name] = list(_checked(rows, options.max_atoms, rejects.append, counts, seen))
    everything = [item for part in parts.values() for item in part]
    if not everything:
        raise InputError(f"no question is left of {counts['read']} rows read{_first_reason(rejects)}")
    questions = [item.question for item in parts[""]]
    group_of = groups(questions, split) if questions else []
    sides: dict[str, list[tuple[_Question, str]]] = {
        name: [(item, "") for item in parts.get(name, ())] for name in SPLITS
    }
    for item, group, side in zip(parts[""], group_of, assign(group_of, split)):
        sides[side].append((item, group))
    splits = {}
    for name in SPLITS:
        lines = (
            item.question.to_json(group=group, file=item.file, position=item.position) for item, group in sides[name]
        )
        splits[name] = [dataclasses.asdict(info) for info in write_split(directory / name, lines)]
    with atomic_file(directory / "rejects.jsonl", "w") as handle:
        for reject in rejects:
            handle.write(json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n")
    training = [item.question for item, _ in sides["train"]]
    copying = {
        name: [entry.to_json() for entry in _copying(training, [item.question for item, _ in sides[name]], options)]
        for name in SPLITS[1:]
    }
    summary = {
        "read": counts["read"],
        "duplicates": counts["duplicates"],
        "substituted": counts["substituted"],
        **({"nameless": _nameless(everything)} if options.replace_names else {}),
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "groups": len(set(group_of)),
        "questions": {name: len(sides[name]) for name in SPLITS},
        "structures": {name: _structures([item.question for item, _ in sides[name]]) for name in SPLITS},
        "copying": copying,
    }
    manifest.write(directory, STAGE, settings, sources, {"splits": splits, "summary": summary})
    return summary


def _copying(training: list[Question], held_out: list[Question], options: argparse.Namespace) -> list[leakage.Copying]:
    if not training or not held_out or not options.leakage_sample:
        return []
    return leakage.measure(training, held_out, options.leakage_sample)


def _structures(questions: Sequence[Question]) -> int:
    return len({structure for question in questions for structure in (*question.molecules, *question.proteins)})


def _nameless(items: Sequence[_Question]) -> int:
    return sum(pubchem.THIS_MOLECULE.lower() in item.question.answer.lower() for item in items)


def _first_reason(rejects: list[Reject]) -> str:
    if not rejects:
        return ""
    first = rejects[0]
    return f"; the first: {first.source_file}, {first.source_position}: {first.detail or first.reason}"


def _read(
    options: argparse.Namespace, paths: list[Path], on_reject: RejectHandler, progress: ByteProgress
) -> Iterator[tuple[str, Row]]:
    """(file name, row) of every row of these files."""
    if options.kind == "pubchemqa":
        if paths:
            yield from pubchem.read(paths, on_reject, options.replace_names)
            progress.advance(sum(path.stat().st_size for path in paths))
        return
    for path in paths:
        for row in _reader(options.kind, path)(path, on_reject):
            yield path.name, row
        progress.advance(path.stat().st_size, path.name)


def _reader(kind: str, path: Path) -> Reader:
    if kind == "uniprotqa":
        suffix = suffix_of(path)
        if suffix == ".json":
            return uniprotqa.read
        if suffix != ".xml" and suffix not in uniprot.FLAT_SUFFIXES:
            known = ", ".join((".json", ".xml", *uniprot.FLAT_SUFFIXES))
            raise InputError(f"{path}: its name must end in {known}, or that and .gz")
        return uniprot.read
    readers = {
        "chebi20": chebi20.read,
        "chemblqa": molecule_questions.read_chembl_qa,
        "questions": molecule_questions.read_rows,
    }
    return readers[kind]


def _checked(
    rows: Iterator[tuple[str, Row]],
    max_atoms: int,
    on_reject: RejectHandler,
    counts: Counter[str],
    seen: set[str],
) -> Iterator[_Question]:
    """Questions that can be asked: structures valid, texts there, each id and each content once; atoms are counted."""
    graph = _measurer(max_atoms)
    for file, (question, position) in rows:
        counts["read"] += 1
        if not question.question.strip() or not question.answer.strip():
            on_reject(Reject(file, position, "empty text", "no question" if question.answer.strip() else "no answer"))
            continue
        try:
            graphs = [graph(smiles) for smiles in question.molecules]
            for sequence in question.proteins:
                clean(sequence)
        except (MoleculeError, ProteinError) as error:
            on_reject(Reject(file, position, error.reason, str(error)))
            continue
        content = short_hash(question.question, question.answer, *question.molecules, "", *question.proteins)
        if content in seen:
            counts["duplicates"] += 1
            continue
        if question.id in seen:
            on_reject(Reject(file, position, "repeated id", f"another row before has the id {question.id}"))
            continue
        seen |= {question.id, content}
        counts["substituted"] += any(substituted for _, substituted in graphs)
        nodes = tuple(atoms for atoms, _ in graphs)
        yield _Question(dataclasses.replace(question, atoms=nodes), file, position)


def _measurer(max_atoms: int) -> Callable[[str], tuple[int, int]]:
    """Nodes of a molecule's graph, and what is `substituted` in it; neighbouring rows often share the molecule."""

    @functools.lru_cache(maxsize=1024)
    def measure(smiles: str) -> tuple[int, int]:
        graph = featurise(smiles, max_atoms)
        return len(graph.atoms), graph.substituted

    return measure


def _show(summary: dict[str, Any], directory: Path) -> None:
    """What was read, left out and kept, and how far copying gets."""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in summary["rejected"].items())
    print(
        f"{summary['read']:,} rows read, {summary['duplicates']:,} duplicates dropped; rejected: {left_out or 'none'}"
    )
    if summary["substituted"]:
        print(f"{summary['substituted']:,} questions about molecules with atoms or bonds that encoders read as others")
    if "nameless" in summary:
        kept = sum(summary["questions"].values())
        print(
            f'{summary["nameless"]:,} of {kept:,} answers say "{pubchem.THIS_MOLECULE}"; others had no name to be found'
        )
    for split in SPLITS:
        print(f"{split}: {summary['questions'][split]:,} questions about {summary['structures'][split]:,} structures")
    if any(summary["copying"].values()):
        table = Table(title="copying the answer of the nearest training structure (and the most frequent answer)")
        for name in ("split", "question"):
            table.add_column(name)
        for name in ("tried", "structure in training", "exact", "word F1", "frequent exact", "frequent word F1"):
            table.add_column(name, justify="right")
        for split, entries in summary["copying"].items():
            for entry in entries:
                shares = [entry[key] for key in ("seen", "exact", "word_f1", "frequent_exact", "frequent_word_f1")]
                text = entry["question"] if len(entry["question"]) < 60 else entry["question"][:57] + "..."
                table.add_row(split, text, f"{entry['count']:,}", *(f"{100 * share:.1f} %" for share in shares))
        console = Console()
        (console if console.is_terminal else Console(width=180)).print(table)
    print(f"questions, rejects and manifest: {directory}")
