"""Multiple-choice and generated answers per CPU second, against lm-eval's and transformers' own ways.

    OMP_NUM_THREADS=1 python benchmarks/choices.py --data DIR

The same requests, made of real MedMCQA rows, go to lm-eval's Hugging Face backend, at each of several batch sizes, and
to `eval.qa.choices`; tokenisation is timed too. The model is a small Llama of random float32 weights (26 M parameters)
with Llama's tokenizer. All choices must be the same and all log-likelihoods equal within 1e-4, or the benchmark fails.
Per side the best of the repeats counts, and lm-eval's best batch size. Options are letters (one token, so that lm-eval
too computes each question once) or texts; examples are the first rows of another part of the file.

Generation: short answers to the same questions by `eval.generate` and by transformers' `generate` with padding, in file
order, at its best batch size; the texts must be the same.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import measure  # noqa: E402
import torch  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: E402

from align.language_model import cut_at  # noqa: E402
from eval.generate import generate  # noqa: E402
from eval.models import EvalModel, load  # noqa: E402
from eval.qa.choices import SharedPrefixLM  # noqa: E402
from job.tokenizer import write_hf_tokenizer  # noqa: E402

LETTERS = "ABCD"
SHOTS, TOLERANCE = 5, 1e-4
NEW_TOKENS, STOPS = 16, ["\n"]


def make_model(data: Path, folder: Path) -> EvalModel:
    """A random Llama; its weights vary enough that its answers do."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=384,
        intermediate_size=1032,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_hf_tokenizer(data / "llama_tokenizer" / "tokenizer.model", folder)
    return load(folder, torch.float32, torch.device("cpu"))


def prompt(row: dict, letters: bool) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, row["options"])) if letters else ""
    return f"Question: {row['question']}\n{options}Answer:"


def requests(rows: Sequence[dict], examples: Sequence[dict], letters: bool) -> list[Instance]:
    before = "".join(
        f"{prompt(row, letters)} {LETTERS[row['cop'] - 1] if letters else row['options'][row['cop'] - 1]}\n\n"
        for row in examples
    )
    return [
        Instance("loglikelihood", row, (before + prompt(row, letters), f" {answer}"), number)
        for row in rows
        for number, answer in enumerate(LETTERS if letters else row["options"])
    ]


def best(sides: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, object]]:
    """Least CPU seconds of each side, the sides in turn, and what each gave."""
    seconds: dict[str, float] = {}
    given: dict[str, object] = {}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.process_time()
            given[name] = run()
            took = time.process_time() - start
            seconds[name] = min(took, seconds.get(name, took))
    return seconds, given


def check(name: str, ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> float:
    """Ends the program where the choices differ; the largest difference of a log-likelihood."""
    one, other = (torch.tensor([nats for nats, _ in side], dtype=torch.float64).view(-1, 4) for side in (ours, theirs))
    largest = float((one - other).abs().max())
    if not torch.equal(one.argmax(1), other.argmax(1)) or largest > TOLERANCE or len(set(one.argmax(1).tolist())) < 2:
        sys.exit(f"{name}: the choices differ, or a log-likelihood by {largest:.1e}")
    return largest


def choices(model: EvalModel, rows: list[dict], arguments: argparse.Namespace) -> dict[str, dict]:
    peer = HFLM(pretrained=model.language_model, tokenizer=model.tokenizer, batch_size=1, max_length=model.max_length)
    lm = SharedPrefixLM(model, token_budget=arguments.token_budget)
    figures = {}
    for title, letters, shots, share in (
        ("letters, zero-shot", True, 0, 1.0),
        ("option texts, zero-shot", False, 0, 0.7),
        ("letters, fixed 5-shot", True, SHOTS, 0.3),
        ("option texts, fixed 5-shot", False, SHOTS, 0.2),
    ):
        items = max(8, int(arguments.items * share))
        asked = requests(rows[SHOTS : SHOTS + items], rows[:shots], letters)

        def theirs(size: int, asked: list[Instance] = asked) -> object:
            peer.batch_size_per_gpu = size
            return peer.loglikelihood(asked, disable_tqdm=True)

        sides: dict[str, Callable] = {
            str(size): lambda size=size, run=theirs: run(size) for size in arguments.batch_sizes
        }
        seconds, given = best(sides | {"ours": lambda asked=asked: lm.loglikelihood(asked)}, arguments.repeats)
        fastest = min(sides, key=lambda size: seconds[size])
        figures[title] = {
            "items": items,
            "ours": items / seconds["ours"],
            "lm-eval": {size: items / seconds[size] for size in sides},
            "best batch size": int(fastest),
            "ratio": seconds[fastest] / seconds["ours"],
            "largest difference": check(title, given["ours"], given[fastest]),
        }
    if lm.truncated:
        sys.exit(f"{lm.truncated} prompts were cut")
    return figures


def generation(model: EvalModel, rows: list[dict], shots: int, items: int, arguments: argparse.Namespace) -> dict:
    asked = requests(rows[SHOTS : SHOTS + items], rows[:shots], letters=True)
    prompts = {request.doc["id"]: request.args[0] for request in asked}
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1, pad_token_id=0, eos_token_id=2, stop_strings=STOPS
    )

    def theirs(size: int) -> dict[str, str]:
        found = {}
        names = list(prompts)
        model.tokenizer.padding_side, model.tokenizer.pad_token_id = "left", 0
        for start in range(0, len(names), size):
            some = names[start : start + size]
            batch = model.tokenizer([prompts[name] for name in some], padding=True, return_tensors="pt")
            ids, mask = batch["input_ids"], batch["attention_mask"]
            with torch.inference_mode():
                new = model.language_model.generate(
                    ids, attention_mask=mask, generation_config=config, tokenizer=model.tokenizer
                )[:, ids.shape[1] :]
            texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
            found |= {name: cut_at(text, STOPS) for name, text in zip(some, texts)}
        return found

    def ours() -> dict[str, str]:
        return generate(
            model, prompts, None, max_new_tokens=NEW_TOKENS, stops=STOPS, token_budget=arguments.token_budget
        )

    sides: dict[str, Callable] = {str(size): lambda size=size: theirs(size) for size in arguments.batch_sizes}
    seconds, given = best(sides | {"ours": ours}, arguments.repeats)
    fastest = min(sides, key=lambda size: seconds[size])
    if given["ours"] != given[fastest] or len(set(given["ours"].values())) < 2:
        sys.exit("the generated texts differ")
    return {
        "items": items,
        "ours": items / seconds["ours"],
        "transformers": {size: items / seconds[size] for size in sides},
        "best batch size": int(fastest),
        "ratio": seconds[fastest] / seconds["ours"],
    }


def line(title: str, row: dict, peer: str) -> list[str]:
    size = row["best batch size"]
    return [
        title,
        str(row["items"]),
        f"{row[peer][str(size)]:.1f} ({size})",
        f"{row['ours']:.1f}",
        f"{row['ratio']:.1f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds medmcqa and llama_tokenizer")
    parser.add_argument("--items", type=int, default=128, help="zero-shot letters and texts; the other rows take fewer")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32], help="of the other side")
    parser.add_argument("--token-budget", type=int, default=16_384, help="of ours")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = (arguments.data / "medmcqa" / "dev_sample_open.json").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    rows = [row | {"options": [row[key] for key in ("opa", "opb", "opc", "opd")]} for row in rows]
    print(measure.machine("torch", "transformers", "lm-eval"))
    print("items per CPU second; all choices and texts the same; in brackets the other side's best batch size\n")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(arguments.data, Path(folder))
        figures = choices(model, rows, arguments)
        generated = {
            "zero-shot": generation(model, rows, 0, arguments.items, arguments),
            "fixed 5-shot": generation(model, rows, SHOTS, max(8, int(arguments.items * 0.3)), arguments),
        }
    print(
        measure.markdown(
            ["MedMCQA", "items", "lm-eval hf", "ours", "ratio", "largest |Δ nats|"],
            [[*line(title, row, "lm-eval"), f"{row['largest difference']:.0e}"] for title, row in figures.items()],
        )
    )
    print()
    print(
        measure.markdown(
            [f"{NEW_TOKENS} new tokens", "items", "transformers, file order", "ours", "ratio"],
            [line(title, row, "transformers") for title, row in generated.items()],
        )
    )
    measure.save(arguments.output, {"choices": figures, "generation": generated})


if __name__ == "__main__":
    main()
