"""README.md of an aligned model: what it is made of, what it was trained on, under which licences, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.settings import AdapterSettings

if TYPE_CHECKING:
    from align.model import AlignedModel

_UNSTATED = "not stated; see where it comes from"


def model_card(
    model: AlignedModel, sizes: Mapping[str, int], name: str, language_model: Path, training: Mapping[str, Any]
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        model: what is described.
        sizes: parameters of its parts.
        name: of the model directory.
        language_model: its directory, whose own card may state a licence.
        training: optional facts: `data` (a list of mappings with `name`, `questions`, `licence`, `manifest_sha256`),
            `molecule_encoder` and `protein_encoder` (what they started from), and any other name with a plain value
            (`steps`, `mode`, ...).
    """
    config = model.language_model.config
    parts = [
        f"| language model | `{language_model.name}`: {config.model_type}, {sizes['language_model']:,} parameters, "
        f"hidden size {config.hidden_size} | {_licence(language_model)} |"
    ]
    for kind in ("molecule", "protein"):
        encoder, settings = getattr(model, f"{kind}_encoder"), getattr(model.settings, kind)
        if encoder is None:
            continue
        start = f", from `{Path(str(training[f'{kind}_encoder'])).name}`" if training.get(f"{kind}_encoder") else ""
        label = settings.kind.upper() if kind == "molecule" else "ESM-2"
        parts.append(
            f"| {kind} encoder | {label}, {sizes[f'{kind}_encoder']:,} parameters, width {encoder.width}{start}; "
            f"{_tokens(settings.adapter, 'atom' if kind == 'molecule' else 'residue')} | {_UNSTATED} |"
        )
    data = [
        f"| {row.get('name', '-')} | {row.get('questions', 0):,} | {row.get('licence') or _UNSTATED} "
        f"| `{str(row.get('manifest_sha256', '-'))[:16]}` |"
        for row in training.get("data", ())
    ]
    facts = [
        f"- {key.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"- {key.replace('_', ' ')}: {value}"
        for key, value in training.items()
        if key not in ("data", "molecule_encoder", "protein_encoder") and isinstance(value, (int, float, str))
    ]
    table = ["| data set | questions | licence | manifest |", "|---|---|---|---|", *data] if data else ["Not stated."]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [biology, chemistry, molecule, protein]",
            "---",
            "",
            f"# {name}",
            "",
            "A language model that answers questions about molecules (SMILES) and proteins (amino-acid sequences).",
            "",
            "```bash",
            f'python -m align ask {name} --molecule "CC(=O)Oc1ccccc1C(=O)O" "Please describe this molecule."',
            "```",
            "",
            "```python",
            "from align.model import AlignedModel",
            "from align.prompts import Turn",
            "",
            f'model = AlignedModel.from_pretrained("{name}")',
            'print(model.generate([Turn("Please describe this molecule.", molecules=("CCO",))]))',
            "```",
            "",
            "## Parts",
            "",
            "| part | what | licence |",
            "|---|---|---|",
            *parts,
            "",
            "A model that is made of others is bound by all of their licences and use policies.",
            "",
            "## Data",
            "",
            *table,
            "",
            *(["## Training", "", *facts, ""] if facts else []),
            "The answers are those of a language model and can be wrong; they are no medical advice.",
            "",
        ]
    )


def _tokens(settings: AdapterSettings, position: str) -> str:
    counts = {"each": f"one token per {position}", "pooled": "one token", "resampled": f"{settings.number} tokens"}
    standardised = "standardised, " if settings.standardise else ""
    return f"{counts[settings.tokens]}, {standardised}{settings.projection} adapter"


def _licence(directory: Path) -> str:
    """What the card of a model directory states in its front matter."""
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    stated = re.search(r"\A---\n(?:.*\n)*?licen[cs]e: *(\S+)\n(?:.*\n)*?---\n", text)
    return stated[1] if stated else _UNSTATED
