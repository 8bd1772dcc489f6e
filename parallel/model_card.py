"""README.md of an exported model: what it is and, stage by stage, what made it."""

from __future__ import annotations

import json
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
    base, stated = _base_model(chain)
    corpora = [_corpus_row(entry, source) for entry in chain for source in _sources(entry)]
    return "\n".join(
        [
            "---",
            *_front_matter(base, stated, bool(corpora)),
            "---",
            "",
            f"# {name}",
            "",
            f"A decoder-only language model of the {shape.family} family: {shape.parameters:,} parameters, "
            f"{shape.layers} layers, hidden size {shape.hidden}, {shape.positions:,} positions, vocabulary "
            f"{shape.vocabulary:,}, {dtype}.",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
            "",
            "## Licence",
            "",
            _licence_line(base, stated, bool(corpora)),
            "",
            *(_CORPORA_HEAD + corpora + [""] if corpora else []),
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


_CORPORA_HEAD = [
    "## Corpora",
    "",
    "Licences are those that the build was told to keep; each document's own is in the shards' `documents.jsonl`.",
    "",
    "| source | format | documents | tokens | licences |",
    "|---|---|---|---|---|",
]


def read_statement(directory: Path) -> dict[str, Any]:
    """`license` and `language` as the front matter of a model directory's README.md states them; empty without any."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    card = directory / "README.md"
    try:
        metadata = metadata_load(card) if card.is_file() else None
    except (ValueError, OSError, YAMLError):  # a card that cannot be read says nothing
        return {}
    return {key: value for key, value in (metadata or {}).items() if key in ("license", "language") and value}


def _front_matter(base: str | None, stated: dict[str, Any], has_corpora: bool) -> list[str]:
    languages = stated.get("language", [])
    languages = [languages] if isinstance(languages, str) else [str(language) for language in languages]
    if has_corpora and "en" not in languages:  # the language of PubMed's abstracts and of nearly all of PMC and S2ORC
        languages = ["en", *languages]
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += [f"license: {json.dumps(stated['license'])}"] if "license" in stated else ["license: other"]
    if languages:
        lines += ["language:", *(f"- {json.dumps(language)}" for language in languages)]
    return lines + ([f"base_model: {json.dumps(base)}"] if base else [])


def _base_model(chain: list[dict[str, Any]]) -> tuple[str | None, dict[str, Any]]:
    """Name of the model that the oldest import of the chain read, and what its card states."""
    imports = [entry for entry in chain if entry["config"].get("source")]
    if not imports:
        return None, {}
    stated: dict[str, Any] = next((entry["base_model"] for entry in reversed(imports) if entry.get("base_model")), {})
    return Path(imports[-1]["config"]["source"]).name, stated  # the name only: cards are published


def _licence_line(base: str | None, stated: dict[str, Any], has_corpora: bool) -> str:
    origin = f"The weights derive from {base}" if base else "The weights were not derived from another model"
    terms = (
        f", whose card states the licence `{stated['license']}`."
        if "license" in stated
        else (", which states no licence in its card: see where it came from." if base else ".")
    )
    return origin + terms + (" The articles of the corpora keep their own licences." if has_corpora else "")


def _sources(entry: dict[str, Any]) -> list[dict[str, Any]]:
    found = entry.get("sources")  # the funnel of a build
    return [source for source in found if "format" in source and "tokens" in source] if isinstance(found, list) else []


def _corpus_row(entry: dict[str, Any], source: dict[str, Any]) -> str:
    licences = (entry["config"].get("selection") or {}).get("licences")
    documents, tokens = source["documents"]["train"], source["tokens"]["train"]
    kept = ", ".join(licences) if licences else "all"
    return f"| {source['name']} | {source['format']} | {documents:,} | {tokens:,} | {kept} |"


def _short(entry: dict[str, Any]) -> str:
    """The few facts of a stage that fit a table cell."""
    facts = [f"{key} {entry[key]:,}" for key in ("step", "tokens", "samples") if isinstance(entry.get(key), int)]
    source = entry["config"].get("source")
    if source:
        facts.append(f"from `{Path(source).name}`")  # the name only: cards are published
    return ", ".join(facts) or "-"
