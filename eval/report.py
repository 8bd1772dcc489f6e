"""Tables that a person reads."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from eval.perplexity import Score


def perplexity_table(scores: dict[str, dict[str, Score]]) -> None:
    """Print one row per source and one column of perplexities per model, in the order given."""
    models = list(scores)
    table = Table(title="validation perplexity (loss in nats per token)", title_justify="left")
    table.add_column("source")
    table.add_column("tokens", justify="right")
    for model in models:
        table.add_column(model, justify="right")
    for source, first in scores[models[0]].items():
        cells = [f"{scores[model][source].perplexity:,.2f} ({scores[model][source].loss:.4f})" for model in models]
        table.add_row(source, f"{first.tokens:,}", *cells)
    Console(width=None if sys.stdout.isatty() else 60 + 40 * len(models)).print(table)
