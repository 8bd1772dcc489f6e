"""README.md of an exported model: what it is and, stage by stage, what made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parallel.shape import ModelShape


def model_card(name: str, shape: ModelShape, dtype: str, chain: list[dict[str, Any]]) -> str:
    """Markdown with the front matter that the Hugging Face hub reads; `chain` is newest first (`manifest.chain`)."""
    rows = [
        f"| {entry['stage']} | {_short(entry)} | {entry['code_version']} | `{entry['manifest_sha256'][:16]}` |"
        for entry in chain
    ]
    packages = ", ".join(f"{package} {version}" for package, version in chain[0]["packages"].items())
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            "",
            f"# {name}",
            "",
            f"A decoder-only language model of the {shape.family} family: {shape.parameters:,} parameters, "
            f"{shape.layers} layers, hidden size {shape.hidden}, vocabulary {shape.vocabulary:,}, {dtype}.",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
            "",
            "## How it was made",
            "",
            "Newest first; the checksum is that of the stage's `manifest.json`. `manifest.json` beside this file holds",
            "the chain in full, with the configuration of each stage.",
            "",
            "| stage | what | code | manifest |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Packages of the last stage: {packages}.",
            "",
        ]
    )


def _short(entry: dict[str, Any]) -> str:
    """The few facts of a stage that fit a table cell."""
    facts = [f"{key} {entry[key]:,}" for key in ("step", "tokens", "samples") if isinstance(entry.get(key), int)]
    source = entry["config"].get("source")
    if source:
        facts.append(f"from `{Path(source).name}`")  # the name only: cards are published
    return ", ".join(facts) or "-"
