"""Is the structure really used? Alignment on real captions against controls that see no structure, or a wrong one.

    OMP_NUM_THREADS=1 python benchmarks/structure_signal.py --data ../shared/data/open --work /scratch/signal

Everything goes through the project's own commands: a tokenizer and a small Llama are trained on captions (data_shards,
parallel, pretrain), then aligned to a molecule encoder (align train), on ChEBI-20 rows of at most 32 atoms whose
captions are cut to 30 words. Per set of rows (`published`: the published split; `scaffold`: by scaffolds) and seed,
models that differ in their data alone:

    true       each caption with its molecule
    shuffled   captions with molecules of other rows, in training and in the test (language model trained)
    none       captions alone (language model trained)
    constant   eight learned tokens, the same for every row (language model frozen)

and two tests of the model trained on true pairs, on rows it has not seen: the answer's loss with its own molecule
against another row's, and against one of like size (align/controls.py).

The language model has been pretrained on every caption but the held-out ones, with a training window for each: from
packed windows a model learns that what stands before a caption has nothing to do with it. The encoder is a public GCN.
Where the language model is trained, so is the encoder, which gives one token per atom. Where it stays frozen, the
encoder does too, and gives eight resampled tokens: what is trained is the adapter alone.

`yeast` (the first clause of SGD's descriptions of yeast proteins, one in five held out) and `uniprot` (answers to the
questions of UniProtQA, clusters of like sequences held out) do the same for proteins: one pooled, standardised token of
an ESM-2 that keeps its random weights, the language model trained. What such an encoder gives is little more than how
often each residue occurs.

Prints Markdown; results are kept in `--work`, and a second run goes on where the first one stopped. Two hours for
everything on two free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from structure_rows import (  # noqa: E402
    ANSWER_WORDS,
    MAX_ATOMS,
    MAX_RESIDUES,
    cut,
    molecule_rows,
    protein_texts,
    texts,
    under,
    uniprot_rows,
    uniprotqa,
    write_questions,
    yeast_rows,
)

from align.controls import PairedTest  # noqa: E402
from align.questions import Question  # noqa: E402
from align.settings import PromptSettings  # noqa: E402
from eval.finetuning.instruction_shards import Row, encode, write  # noqa: E402
from job.track import read_rows  # noqa: E402

LANGUAGE_MODEL = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=2000,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    initializer_range=0.02,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    torch_dtype="float32",
)
WORDS = 45  # of a caption: what the language model is trained on
LONGEST = 96  # tokens of a caption that has a window of its own; a few have more, and are left out

PROMPT = PromptSettings(system="", human="Q", assistant="A")


@dataclass(frozen=True)
class Arm:
    """What is trained, from which language model, and how fast."""

    name: str
    tune: str
    language_model: str
    adapter: str
    rate: float
    conditions: tuple[str, ...]
    molecules: str | None = None
    """a public encoder's weights, in the directory of data; none: a GIN from random weights"""
    proteins: bool = False
    epochs: float | None = None
    """of alignment; none: those of the split"""


CONDITIONS = ("true", "none", "shuffled")
EACH = '{tokens = "each"}'
EIGHT = '{tokens = "resampled", number = 8, standardise = true}'
POOLED = '{tokens = "pooled", standardise = true}'
PUBLIC_ENCODER = "gnn_checkpoints/gcn_supervised_contextpred.pth"  # of Hu et al. 2020, arXiv 1905.12265
ARMS = {
    "trainable": Arm("language model trained", "all", "caption-model", EACH, 1e-3, CONDITIONS, PUBLIC_ENCODER),
    "proteins": Arm(
        "language model trained", "language_model", "language-model", POOLED, 1e-3, CONDITIONS, proteins=True
    ),
    "frozen": Arm(
        "language model frozen",
        "adapters",
        "caption-model",
        EIGHT,
        1e-3,
        ("true", "constant"),
        PUBLIC_ENCODER,
        epochs=5.0,
    ),
}
EPOCHS = {"published": 2.0, "scaffold": 3.0, "yeast": 4.0, "uniprot": 12.0}
PROTEINS = ("yeast", "uniprot")


def main() -> None:
    """Prepare, train, test, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory that holds chebi20/ and the like")
    parser.add_argument("--work", type=Path, required=True, help="where models and results are kept")
    parser.add_argument("--splits", nargs="+", choices=EPOCHS, default=list(EPOCHS), help="sets of rows (default: all)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="what is trained (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, help=f"of alignment (default: {EPOCHS}; language model frozen: 5)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    for split in options.splits:
        work = options.work / split
        arms = [arm for arm in options.arms if ARMS[arm].proteins == (split in PROTEINS)]
        rows = protein_rows(options.data, split, work) if split in PROTEINS else molecule_rows(options.data, split)
        prepare(work, *rows)
        corpus = protein_texts(options.data, split, rows[0]) if split in PROTEINS else texts(options.data)
        held_out = {row.id for row in rows[1]}
        corpus = {name: text for name, text in corpus.items() if name not in held_out}
        make_language_models(work, corpus, {ARMS[arm].language_model for arm in arms})
        jobs = [
            (options.data, work, ARMS[arm], condition, seed, options.epochs or ARMS[arm].epochs or EPOCHS[split])
            for arm in arms
            for seed in range(options.seeds)
            for condition in ARMS[arm].conditions
        ]
        pool = ThreadPoolExecutor(options.processes)
        try:
            list(pool.map(lambda job: train(*job), jobs))
        finally:
            pool.shutdown(cancel_futures=True)
        for arm in arms:
            print(report(work, split, ARMS[arm], options.seeds, len(rows[0]), len(rows[1])), flush=True)


def protein_rows(data: Path, split: str, work: Path) -> tuple[list[Question], list[Question]]:
    """Training and test rows; those of UniProt are built first, with clusters of like sequences held out."""
    if split == "yeast":
        return yeast_rows(data)
    if not (work / "entries").exists():
        (work / "logs").mkdir(parents=True, exist_ok=True)
        (work / "entries.json").write_text(json.dumps(uniprotqa(data)))
        words: list[str | Path] = ["uniprotqa", work / "entries.json", "--out", work / "entries"]
        words += ["--split", "identity", "--clusters", "kmers", "--validation-fraction", "0", "--test-fraction", "0.25"]
        run(["align", "build", *words], work / "logs" / "entries")
    return uniprot_rows(work / "entries")


# The language model.


def run(words: Sequence[str | Path], log: Path) -> None:
    """One of the project's commands; its output goes to a file, which a failure shows."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with open(log, "w") as output:
        command = [sys.executable, "-m", *map(str, words)]
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")


def prepare(work: Path, train_rows: list[Question], test_rows: list[Question]) -> None:
    """The question sets of all conditions."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "logs").mkdir(exist_ok=True)
    for seed in range(10):
        splits = {"train": train_rows, "validation": test_rows, "test": test_rows}
        for condition in ("true", "none", "constant", "shuffled") if seed == 0 else ("shuffled",):
            name = condition if condition != "shuffled" else f"shuffled-{seed}"
            made = {
                split: under(condition, rows, 100 * seed + number)
                for number, (split, rows) in enumerate(splits.items())
            }
            made["validation"] = made["test"]
            write_questions(work / "questions" / name, made)


def make_language_models(work: Path, corpus: dict[str, str], names: set[str]) -> None:
    """Tokenizer and language models: "language-model" from packed windows, "caption-model" from one per caption."""
    captions = {name: cut(text, WORDS) for name, text in corpus.items()}
    if not (work / "tokenizer").exists():
        file = write_texts(work / "tokenizer-texts.jsonl", captions)
        run(
            ["data_shards", "tokenizer", "--input", file, "--vocab-size", "2000", "--output", work / "tokenizer"],
            work / "logs" / "tokenizer",
        )
    if not (work / "base").exists():
        (work / "model.json").write_text(json.dumps(LANGUAGE_MODEL))
        run(["parallel", "create", work / "model.json", work / "tokenizer", work / "base"], work / "logs" / "create")
    if "language-model" in names and not (work / "language-model").exists():
        texts = write_texts(work / "language-model-texts.jsonl", captions)
        (work / "language-model-build.toml").write_text(
            f'output = "{work}/language-model-shards"\ntokenizer = "{work}/tokenizer"\n'
            f'[selection]\nminimum_characters = 1\n[[sources]]\nname = "captions"\nformat = "jsonl"\n'
            f'paths = ["{texts}"]\n[sharding]\nvalidation_fraction = 0.02\n'
        )
        run(["data_shards", "build", work / "language-model-build.toml"], work / "logs" / "language-model-build")
        pretrain(work, "language-model", length=128, windows=16)
    if "caption-model" in names and not (work / "caption-model").exists():
        rows = [Row(name, "", cut(text, ANSWER_WORDS)) for name, text in corpus.items()]
        if not (work / "caption-model-shards").exists():
            encoded = encode(rows, work / "base", LONGEST)
            write(work / "caption-model-shards", encoded, work / "base", LONGEST, False, 0, {"rows": len(rows)}, [])
        pretrain(work, "caption-model", length=LONGEST, windows=32)


def write_texts(file: Path, corpus: dict[str, str]) -> Path:
    """JSON lines."""
    file.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in corpus.items()))
    return file


def pretrain(work: Path, name: str, length: int, windows: int) -> None:
    """A language model from random weights: five epochs over its shards."""
    shards, checkpoint, directory = (work / f"{name}-{part}" for part in ("shards", "start", "run"))
    (work / f"{name}.toml").write_text(
        f'directory = "{directory}"\n[model]\npath = "{checkpoint}"\n'
        f'[data]\nsequence_length = {length}\n[[data.sources]]\npath = "{shards}"\n'
        f"[train]\nepochs = 5\nglobal_batch = {windows}\nmicro_batch = {windows}\n"
        f'precision = "fp32"\nlog_every = 20\n[optimizer]\nlr = 2e-3\n[schedule]\nwarmup = 0.05\n'
        '[tracking]\nmode = "disabled"\n'
    )
    logs = work / "logs"
    run(["parallel", "import", work / "base", checkpoint], logs / f"{name}-import")
    run(["pretrain", work / f"{name}.toml"], logs / f"{name}-pretrain")
    run(["parallel", "export", directory, work / name], logs / f"{name}-export")


# Alignment.


def train(data: Path, work: Path, arm: Arm, condition: str, seed: int, epochs: float) -> None:
    """One run of `align train` and `align export`, and its tests; skipped where its results are there."""
    name = f"{arm.tune}-{condition}-{seed}"
    results = work / "results" / f"{name}.json"
    if results.exists():
        return
    questions = f"shuffled-{seed}" if condition == "shuffled" else condition
    align(data, work, name, arm, questions, seed, epochs)
    logs = work / "logs"
    rows = read_rows(work / "runs" / name / "metrics.jsonl")
    outcome: dict[str, object] = {"test_loss": [row["val/loss/rows"] for row in rows if "val/loss/rows" in row][-1]}
    if condition in ("true", "shuffled"):  # of the second it is the null: pairs that it has never learned
        model, held_out = work / "models" / name, work / "questions" / "true"
        run(
            ["align", "controls", model, held_out, *f"--limit 0 --json --seed {seed}".split()],
            logs / f"{name}-controls",
        )
        outcome["tests"] = json.loads((logs / f"{name}-controls").read_text().splitlines()[-1])["tests"]
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(outcome))


def align(data: Path, work: Path, name: str, arm: Arm, questions: str, seed: int, epochs: float) -> None:
    """`align train` and `align export`."""
    encoder = (
        f'kind = "gcn"\nweights = "{data.resolve()}/{arm.molecules}"' if arm.molecules else "layers = 4\nwidth = 128"
    )
    molecule = f"use = {str(not arm.proteins).lower()}\n{encoder}\nmax_atoms = {MAX_ATOMS}\n"
    protein = "use = false\n"
    if arm.proteins:
        make_protein_encoder(work / "protein-encoder", seed)
        protein = f'use = true\nmax_residues = {MAX_RESIDUES}\nweights = "{work}/protein-encoder-{seed}"\n'
    rows, config = work / "questions" / questions, work / f"{name}.toml"
    cache = f'cache_directory = "{work}/features/{name}"\n' if arm.tune in ("adapters", "language_model") else ""
    config.write_text(
        f'directory = "{work}/runs/{name}"\n[model]\nlanguage_model = "{work / arm.language_model}"\n'
        f"max_length = 256\n[molecule]\n{molecule}adapter = {arm.adapter}\n"
        f"[protein]\n{protein}adapter = {arm.adapter}\n"
        f'[prompt]\nsystem = ""\nhuman = "{PROMPT.human}"\nassistant = "{PROMPT.assistant}"\n'
        f'[tune]\nmode = "{arm.tune}"\n'
        f'[data]\ntoken_budget = 8192\nseed = {seed}\n{cache}[[data.sources]]\npath = "{rows}"\nname = "rows"\n'
        f'[parallel]\nstage = 0\n[train]\nepochs = {epochs}\nglobal_batch = 32\nprecision = "fp32"\nseed = {seed}\n'
        f"samples = 0\nlog_every = 10\n[optimizer]\nlr = {arm.rate}\nweight_decay = 0.01\nbeta2 = 0.98\n"
        '[schedule]\nwarmup = 40\nminimum = 0.05\n[tracking]\nmode = "disabled"\n'
    )
    logs = work / "logs"
    run(["align", "train", config], logs / f"{name}-train")
    shutil.rmtree(work / "models" / name, ignore_errors=True)  # of a benchmark that was stopped
    run(["align", "export", work / "runs" / name, work / "models" / name], logs / f"{name}-export")


def make_protein_encoder(place: Path, seed: int) -> None:
    """A small ESM-2 of random weights, as a Hugging Face directory."""
    from align.esm import create_protein_encoder

    directory = place.with_name(f"{place.name}-{seed}")
    if not directory.exists():
        create_protein_encoder(layers=2, width=256, heads=4, seed=seed).esm.save_pretrained(directory)


# Report.


def report(work: Path, split: str, arm: Arm, seeds: int, train_rows: int, test_rows: int) -> str:
    """The table of one split and arm."""
    outcome = {
        condition: [
            json.loads((work / "results" / f"{arm.tune}-{condition}-{seed}.json").read_text()) for seed in range(seeds)
        ]
        for condition in arm.conditions
    }
    losses = {condition: [entry["test_loss"] for entry in entries] for condition, entries in outcome.items()}
    spread = max(float(np.std(values, ddof=1)) if seeds > 1 else 0.0 for values in losses.values())
    true = float(np.mean(losses["true"]))
    lines = [
        f"\n**{split} split, {arm.name}** ({train_rows:,} training rows, {test_rows:,} test rows, {seeds} seeds)\n",
        "| trained on | test loss by seed | mean | above true | in seed spreads |",
        "|---|---|---|---|---|",
    ]
    for condition, values in losses.items():
        mean = float(np.mean(values))
        shown = " / ".join(f"{value:.4f}" for value in values)
        times = f"{(mean - true) / spread:.1f}" if spread and condition != "true" else "-"
        above = f"{mean - true:.4f}" if condition != "true" else "-"
        lines.append(f"| {condition} | {shown} | {mean:.4f} | {above} | {times} |")
    lines += [
        "",
        "| model trained on | other structure | own is likelier, by seed | t | loss own / other |",
        "|---|---|---|---|---|",
    ]
    for condition in (name for name in arm.conditions if name in ("true", "shuffled")):
        for number in range(2):
            tests = [PairedTest(**entry["tests"][number]) for entry in outcome[condition]]
            wins = " / ".join(f"{test.wins:.1%}" for test in tests)
            scores = " / ".join(f"{test.t:.1f}" for test in tests)
            pair = f"{np.mean([test.own for test in tests]):.4f} / {np.mean([test.other for test in tests]):.4f}"
            lines.append(f"| {condition} | {tests[0].name} | {wins} | {scores} | {pair} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
