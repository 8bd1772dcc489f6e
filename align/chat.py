"""`python -m align chat`: a conversation about structures that can be swapped on the way."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from align.answer import add_options, answer, generation_options, load, read_structures
from align.prompts import Turn
from job.errors import InputError

if TYPE_CHECKING:
    from align.model import AlignedModel

COMMANDS = """  /molecule SMILES|FILE    the next question is about this molecule, or several with blanks between
  /protein SEQUENCE|FILE   likewise
  /clear                   forget the conversation and its structures
  /help                    show this
  /quit                    leave (or Ctrl-D)"""


def main(arguments: Sequence[str]) -> None:
    """Parse, load, converse until the input ends."""
    parser = argparse.ArgumentParser(
        prog="python -m align chat",
        description="Talk with an aligned model about molecules and proteins. It remembers the turns; where they no "
        "longer fit its context, the oldest are forgotten, and it says so.\n\nwithin the conversation:\n" + COMMANDS,
        epilog='example: python -m align chat aligned --molecule "CC(=O)Oc1ccccc1C(=O)O"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    chosen = generation_options(options)
    molecules, proteins = read_structures(options.molecule, options.protein)
    model = load(options)
    Conversation(model, chosen, molecules, proteins).run(_lines())


@dataclass
class Conversation:
    """Turns so far, and the structures that go with the next question."""

    model: AlignedModel
    options: dict[str, Any]
    molecules: tuple[str, ...] = ()
    proteins: tuple[str, ...] = ()
    turns: list[Turn] = field(default_factory=list)

    def run(self, lines: Iterator[str]) -> None:
        """Answer every line, or obey it where it is a command; a mistake is told and changes nothing."""
        if sys.stdin.isatty():
            print("Ask about a molecule or a protein; /help lists the commands.")
        for line in lines:
            if line == "/quit":
                return
            try:
                self._command(line) if line.startswith("/") else self._ask(line)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:  # while it answers; at the prompt it leaves
                print("\n(interrupted: this question is forgotten)", file=sys.stderr, flush=True)

    def _command(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if command in ("/molecule", "/protein") and not argument:
            raise InputError(f"{command} needs a structure or a file")
        if command == "/molecule":
            self.molecules = read_structures(argument.split(), [])[0]
        elif command == "/protein":
            self.proteins = read_structures([], argument.split())[1]
        elif command == "/clear":
            self.molecules, self.proteins, self.turns = (), (), []
        elif command == "/help":
            print(COMMANDS)
        else:
            raise InputError(f"unknown command {command}; the commands are:\n{COMMANDS}")

    def _ask(self, question: str) -> None:
        turn = Turn(question, None, self.molecules, self.proteins)
        turns = self._that_fit([*self.turns, turn])
        text = answer(self.model, turns, self.options, show=True)
        self.turns = [*turns[:-1], replace(turns[-1], answer=text)]
        self.molecules, self.proteins = (), ()  # they stay in the conversation, at their turn

    def _that_fit(self, turns: list[Turn]) -> list[Turn]:
        """The newest turns that leave room for an answer; structures of older ones are shown with the oldest kept."""
        room = self.model.settings.max_length - self.options["max_new_tokens"]
        kept = list(turns)
        while len(kept) > 1 and len(self.model.encoding.prompt(kept)) > room:
            oldest, following, *rest = kept
            molecules, proteins = oldest.molecules + following.molecules, oldest.proteins + following.proteins
            kept = [replace(following, molecules=molecules, proteins=proteins), *rest]
        if len(kept) < len(turns):
            forgotten = len(turns) - len(kept)
            print(f"({forgotten} oldest turn{'s' * (forgotten > 1)} forgotten: no room)", file=sys.stderr, flush=True)
        return kept


def _lines() -> Iterator[str]:
    """Lines that are not blank; with a prompt and line editing on a terminal."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    import contextlib
    import importlib

    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line
