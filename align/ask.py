"""`python -m align ask`: one question, one answer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from align.answer import add_options, answer, generation_options, load, read_structures
from align.prompts import Turn
from job.errors import InputError

EXAMPLES = """examples:
  python -m align ask aligned --molecule "CC(=O)Oc1ccccc1C(=O)O" "Please describe this molecule."
  python -m align ask aligned --protein kinase.fasta "What is the function of this protein?"
  echo "Do these two bind?" | python -m align ask aligned --molecule drug.sdf --protein target.fasta - --json
"""


def main(arguments: Sequence[str]) -> None:
    """Parse, load, answer."""
    parser = argparse.ArgumentParser(
        prog="python -m align ask",
        description="Ask an aligned model a question about molecules and proteins. The answer is printed as it is "
        "generated. It is a language model's: it can be wrong.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("question", metavar="QUESTION", help="the question, or '-' to read it from standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the bare answer")
    options = parser.parse_args(arguments)
    chosen = generation_options(options)
    question = (sys.stdin.read() if options.question == "-" else options.question).strip()
    if not question:
        raise InputError("the question is empty; give it as an argument, or pipe it in with '-'")
    molecules, proteins = read_structures(options.molecule, options.protein)
    model = load(options)
    text = answer(model, [Turn(question, None, molecules, proteins)], chosen, show=not options.json)
    if options.json:
        fields = {"question": question, "molecules": molecules, "proteins": proteins, "answer": text}
        print(json.dumps(fields, ensure_ascii=False))
