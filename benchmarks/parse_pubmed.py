"""PubMed XML to articles, against pubmed_parser, on real baseline and update files.

    python benchmarks/parse_pubmed.py --data DIR

Both read every record of every `pubmed_xml/*.xml.gz` and touch its title and abstract: records per CPU second. Ours
also cleans the text, reads retraction markers and identifiers, and rejects malformed records one by one. Printed beside
it: the records whose abstract has fewer letters in one than in the other (pubmed_parser loses text around markup).
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import measure
import pubmed_parser

from data_shards.articles import Article
from data_shards.readers import pubmed

OURS, PEER = "data_shards.readers.pubmed", "pubmed_parser.parse_medline_xml"


def ours(files: list[Path]) -> dict[str, str]:
    """PMID -> abstract."""
    found = (record for file in files for record in pubmed.read(file, lambda reject: None))
    return {record.pmid or "": "\n".join(record.abstract) for record in found if isinstance(record, Article)}


def peer(files: list[Path]) -> dict[str, str]:
    """PMID -> abstract."""
    found = (record for file in files for record in pubmed_parser.parse_medline_xml(str(file)))
    return {record["pmid"]: record["abstract"] for record in found if not record["delete"]}


def letters(text: str) -> int:
    """How many letters there are, whatever the spacing and markup."""
    return sum(letter.isalpha() for letter in text)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pubmed_xml/*.xml.gz")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, help="read only this many files (for a quick try)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    files = sorted((arguments.data / "pubmed_xml").glob("*.xml.gz"))[: arguments.limit]
    if not files:
        parser.error(f"no pubmed_xml/*.xml.gz in {arguments.data}")

    mine, theirs = ours(files), peer(files)
    if mine.keys() != theirs.keys():
        parser.error("the two readers found different records")
    lost = sum(letters(theirs[pmid]) < 0.98 * letters(text) for pmid, text in mine.items())
    contenders = {OURS: lambda: float(len(ours(files))), PEER: lambda: float(len(peer(files)))}
    rates = measure.in_turn(contenders, arguments.repeats)
    table = {name: measure.summary(rates[name], rates[PEER]) for name in contenders}
    rows = [
        [name, *(f"{table[name][key]:,.0f}" for key in ("min", "median", "max")), f"{table[name]['ratio']:.2f} ×"]
        for name in contenders
    ]
    print(measure.machine("lxml", "pubmed-parser"))
    print(f"{len(files)} files, {len(mine):,} records\n")
    print(measure.markdown(["records per CPU second", "min", "median", "max", "ratio"], rows))
    print(f"\nabstracts in which pubmed_parser has fewer letters (by 2 % or more): {lost}")
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": measure.machine("lxml"), "records": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
