"""Does continued pretraining help? A small trained model, before and after real articles, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/pretraining_helps.py --data ../shared/data/open --work /scratch/helps

The base is stories260K, a Llama of 260,000 parameters that has read children's stories only. Everything goes through
the project's own commands: PubMed, PMC and S2ORC articles become shards, the model continues on them once per seed
(pretrain; the seed orders the articles), and `python -m eval pretraining` compares before and after on held-out
articles and on the questions of suite qa. Prints that command's table. Finished stages are kept in `--work`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Build, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory that holds stories260K, medmcqa, ...")
    parser.add_argument("--work", type=Path, required=True, help="where shards, models and results are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", default="4e6", help="tokens of each run (default 4e6)")
    parser.add_argument("--tasks", nargs="+", default=[], help="of suite qa (default: all whose files are in --data)")
    options = parser.parse_args()
    data, work = options.data.resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    base = data / "stories260K" / "hf"
    build(data, base, work)
    if not (work / "checkpoint").exists():
        run(["parallel", "import", base, work / "checkpoint"])
    models = []
    for seed in range(1, options.seeds + 1):
        model = work / f"seed-{seed}"
        if not model.exists():
            train(work, seed, options.tokens)
            run(["parallel", "export", work / f"run-{seed}", model])
        models.append(model)
    compare = ["eval", "pretraining", "--base", base, "--continued", *models, "--shards", work / "shards"]
    compare += ["--sequence-length", "512", "--data", data, "--out", work / "comparison"]
    run([*compare, "--tasks", *options.tasks] if options.tasks else compare)


def build(data: Path, base: Path, work: Path) -> None:
    """Token shards of all real articles, one in fifty documents held out."""
    if (work / "shards").exists():
        return
    (work / "build.toml").write_text(f"""
        tokenizer = "{base}"
        output = "{work}/shards"
        [[sources]]
        name = "pubmed"
        format = "pubmed"
        paths = ["{data}/pubmed_xml/*.xml.gz"]
        [[sources]]
        name = "pmc"
        format = "pmc"
        paths = ["{data}/jats_fulltext/*.tar.gz"]
        [[sources]]
        name = "s2orc"
        format = "s2orc"
        paths = ["{data}/s2orc/s2orc_v2_bulk_257292514.jsonl"]
        [sharding]
        validation_fraction = 0.02
    """)
    run(["data_shards", "build", work / "build.toml"])


def train(work: Path, seed: int, tokens: str) -> None:
    """Continue the base on the articles in the order of `seed`."""
    config = work / f"pretrain-{seed}.toml"
    config.write_text(f"""
        directory = "{work}/run-{seed}"
        [model]
        path = "{work}/checkpoint"
        [data]
        sequence_length = 512
        seed = {seed}
        [[data.sources]]
        path = "{work}/shards"
        [train]
        tokens = {tokens}
        global_batch = 16
        micro_batch = 16
        precision = "fp32"
        seed = {seed}
        log_every = 50
        [optimizer]
        lr = 1e-3
        [tracking]
        mode = "disabled"
    """)
    run(["pretrain", config])


def run(words: Sequence[str | Path]) -> None:
    """One of the project's commands, shown."""
    line = ["python", "-m", *map(str, words)]
    print("$", " ".join(line), flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    subprocess.run([sys.executable, *line[1:]], check=True, env=environment)


if __name__ == "__main__":
    main()
