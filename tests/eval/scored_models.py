"""Small models of several families, and requests made of real multiple-choice rows."""

import json
from functools import cache, wraps
from pathlib import Path

import torch
import transformers
from lm_eval.api.instance import Instance

from eval.models import EvalModel, load

LETTERS = "ABCD"

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
_LLAMA = _SMALL | {"intermediate_size": 64, "max_position_embeddings": 512}
FAMILIES = {
    "biogpt": ("BioGptConfig", _SMALL | {"intermediate_size": 64, "max_position_embeddings": 512}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 512}),
    "opt": (
        "OPTConfig",
        _SMALL | {"ffn_dim": 64, "max_position_embeddings": 512, "word_embed_proj_dim": 32},
    ),
    "mistral": ("MistralConfig", _LLAMA | {"num_key_value_heads": 2, "sliding_window": 100}),
    "gemma2": (
        "Gemma2Config",
        _LLAMA | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4096, "final_logit_softcapping": 5.0},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 512}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 512, "state_size": 8}),
}
"""By name: the class of the config and its values."""


@cache
def trained(real_data: Path) -> EvalModel:
    """stories260K."""
    return load(real_data / "stories260K" / "hf", torch.float32, torch.device("cpu"))


@cache
def random_model(real_data: Path, family: str) -> EvalModel:
    """Random weights, large enough for attention to matter, with the tokenizer of stories260K."""
    name, values = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return EvalModel(Path(family), family, model, trained(real_data).tokenizer, None)


@cache
def questions(real_data: Path) -> tuple[dict, ...]:
    """Rows of MedMCQA in file order, with their options as a list."""
    lines = (real_data / "medmcqa" / "dev_sample_open.json").read_text(encoding="utf-8").strip().split("\n")
    rows = map(json.loads, lines)
    return tuple(row | {"options": [row[key] for key in ("opa", "opb", "opc", "opd")]} for row in rows)


def prompt(row: dict, letters: bool) -> str:
    """The question, with its options where letters are asked for."""
    listed = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, row["options"])) if letters else ""
    return f"Question: {row['question']}\n{listed}Answer:"


def requests(real_data: Path, count: int, letters: bool, shots: int = 0) -> list[Instance]:
    """One request per option of the first `count` rows, after the shortest of the other rows as examples."""
    rows = questions(real_data)
    examples = ""
    for row in sorted(rows[200:], key=lambda row: len(prompt(row, True)))[:shots]:
        answer = row["cop"] - 1
        examples += f"{prompt(row, letters)} {LETTERS[answer] if letters else row['options'][answer]}\n\n"
    return [
        Instance("loglikelihood", row, (examples + prompt(row, letters), f" {answer}"), number)
        for row in rows[:count]
        for number, answer in enumerate(LETTERS if letters else row["options"])
    ]


class Counted:
    """Counts the tokens that a model is fed."""

    def __init__(self, model, monkeypatch):
        self.tokens = 0
        forward = model.language_model.forward

        @wraps(forward)  # transformers looks at its signature
        def counting(*arguments, **options):
            ids = options["input_ids"] if "input_ids" in options else arguments[0]
            self.tokens += ids.numel()
            return forward(*arguments, **options)

        monkeypatch.setattr(model.language_model, "forward", counting)
