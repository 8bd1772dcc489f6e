"""`python -m eval finetune TASK`: the fine-tuned protocol, one command per row of a published table.

    training rows --masked shards--> pretrain, once per seed --export--> models --python -m eval--> scores, mean, spread
         base model --import-----------^                        base model, untuned -----^

Every stage leaves a finished directory under OUT or none, so that the same command goes on where it was stopped:

    OUT/settings.json       what the run was begun with; other settings are refused
    OUT/shards/  OUT/base/  what training reads
    OUT/runs/seed-0/        a run directory of `pretrain`; its checkpoints go when the model is exported
    OUT/models/seed-0/      the fine-tuned model
    OUT/scores/             the report of `python -m eval` over the untuned model and all seeds
    OUT/results.json        every seed, mean and spread, beside the untuned model's score
    OUT/logs/               what each stage printed
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.order import first_difference
from eval.finetuning.instruction_shards import SOURCE, Packed, encode, write
from eval.finetuning.instructions import TASKS, Instructions, read
from eval.finetuning.results import losses, packing_notes, show, summary
from eval.suites import suite
from job import config as configs
from job import manifest
from job.directory import RunDirectory
from job.errors import InputError
from job.files import read_json, sha256_file, write_json
from job.training import CheckpointConfig, ScheduleConfig, TrackingConfig
from job.verbs import check_at_least
from parallel.checkpoint_files import read_manifest
from parallel.layout import Layout
from parallel.shape import read_shape
from pretrain.config import DataConfig, ModelConfig, OptimizerConfig, PretrainConfig, SourceConfig, TrainConfig

FORMAT_VERSION = 1
DESCRIPTION = """Fine-tune a model on a task's training rows and score it on the test rows, with several seeds.

  python -m eval finetune medmcqa --model models/biomedgpt-lm-7b --data benchmarks/medical --out finetuned/medmcqa \\
      --ranks 8 --tensor 2
  python -m eval finetune pubmedqa --model ... --data ... --out ... --dry-run        what it would do
  python -m eval finetune medqa_4_options ... -- --train.recompute full              any key of pretrain's config

Prompts and answers are worded as evaluation words them; only answers are learnt. Several rows are packed into a window
and see those before them, unless --unpacked. The defaults follow Meditron's fine-tuning (3 epochs, 64 rows a step, 2e-5
falling to a tenth, 10 % warm-up; Chen et al. 2023); BioMedGPT's own settings were not published.
"""


def main(arguments: Sequence[str]) -> int:
    """Parse, check everything, then go from stage to stage."""
    words = list(arguments)
    split = words.index("--") if "--" in words else len(words)
    options = _parse(words[:split])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("finetune starts its own processes: run it once, without torchrun or srun, and give --ranks")
    with _divided_rows(options) as divided:
        instructions = read(
            options.task,
            options.data,
            options.scoring,
            options.train_file,
            options.hold_out,
            options.hold_out_seed,
            divided,
        )
        plan = _Plan(options, instructions, words[split + 1 :])
        if options.dry_run:
            print(plan.describe())
            return 0
        plan.run()
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval finetune", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", metavar="TASK", choices=TASKS, help=", ".join(TASKS))
    parser.add_argument("--model", type=Path, required=True, metavar="HF_DIR", help="the model to fine-tune")
    parser.add_argument(
        "--data", type=Path, required=True, nargs="+", metavar="DIR", help="the task's published files, as they are"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of everything made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="(default 0 1 2)")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--train-file", type=Path, metavar="FILE", help="training rows, instead of the published file")
    rows.add_argument(
        "--hold-out", type=float, default=0.0, metavar="SHARE", help="learn from this share of the rows to be scored"
    )
    rows.add_argument("--hold-out-seed", type=int, default=0, metavar="S", help="of the rows held out (default 0)")
    rows.add_argument("--train-rows", type=int, default=0, metavar="N", help="learn from the first N rows (0: all)")
    rows.add_argument("--limit", type=int, default=0, metavar="N", help="score the first N rows (0: all)")
    rows.add_argument(
        "--scoring",
        default="letters",
        choices=suite("qa").SCORINGS,  # type: ignore[attr-defined]
        help="of question sets, as in suite qa; decides what the answer to be learnt looks like (default letters)",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=float, default=3.0, help="passes over the training rows (default 3)")
    training.add_argument("--lr", type=float, default=2e-5, help="peak learning rate (default 2e-5)")
    training.add_argument("--batch", type=int, default=64, metavar="ROWS", help="rows of one step, about (default 64)")
    training.add_argument("--weight-decay", type=float, default=0.0, help="(default 0)")
    training.add_argument(
        "--sequence-length", type=int, default=0, metavar="N", help="of a window (default: 2048, or what the model has)"
    )
    training.add_argument(
        "--unpacked", action="store_true", help="each row in a window of its own, so that no row sees another: slower"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--ranks", type=int, default=0, metavar="N", help="processes (default: tensor x pipeline)")
    machine.add_argument("--tensor", type=int, default=1, metavar="T", help="tensor-parallel size (default 1)")
    machine.add_argument("--pipeline", type=int, default=1, metavar="P", help="pipeline-parallel size (default 1)")
    machine.add_argument("--micro-batch", type=int, default=1, metavar="N", help="windows at a time (default 1)")
    machine.add_argument(
        "--precision", choices=("bf16", "fp32"), help="of training (default: bf16 on GPUs, fp32 elsewhere)"
    )
    machine.add_argument("--keep-checkpoints", action="store_true", help="also when the model has been exported")
    machine.add_argument("--dry-run", action="store_true", help="check rows and sizes, say what would be done")
    options = parser.parse_args(words)
    check_at_least(options, batch=1, tensor=1, pipeline=1, micro_batch=1)
    check_at_least(options, ranks=0, limit=0, train_rows=0, sequence_length=0, lr=0, weight_decay=0, hold_out=0)
    if not options.epochs > 0:
        raise InputError(f"--epochs must be more than 0, not {options.epochs:g}")
    if min(options.seeds) < 0:
        raise InputError(f"--seeds must be at least 0, not {min(options.seeds)}")
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError("--seeds has a seed twice")
    if not (options.model / "config.json").is_file():
        raise InputError(f"{options.model}/config.json does not exist; a Hugging Face model directory is needed")
    return options


@contextlib.contextmanager
def _divided_rows(options: argparse.Namespace) -> Iterator[Path]:
    """Where rows that are held out are written to; a dry run leaves nothing."""
    if not options.dry_run:
        yield options.out / "rows"
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "rows"


@dataclass
class _Plan:
    """A run of the protocol: its sizes, its stages, and how it goes through them."""

    options: argparse.Namespace
    instructions: Instructions
    pretrain_words: list[str]

    def __post_init__(self) -> None:
        """Work out sizes; raises `InputError` where model, rows and layout do not fit together."""
        options = self.options
        self.out: Path = options.out
        self.layout = Layout(tensor=options.tensor, pipeline=options.pipeline)
        self.ranks = options.ranks or options.tensor * options.pipeline
        shape = read_shape(options.model)
        rows = self.instructions.rows[: options.train_rows or None]
        length = options.sequence_length or min(2048, shape.positions)
        if length > shape.positions:
            raise InputError(f"--sequence-length {length} is more than the model's {shape.positions} positions")
        self.encoded = encode(rows, options.model, length)
        if left_out := len(rows) - len(self.encoded):
            self.instructions.notes.append(
                f"{left_out:,} rows whose answers alone fill {length:,} tokens were left out"
            )
        if options.unpacked and not options.sequence_length:  # no longer than needed; 64 suits every layout
            length = min(length, -(-max(len(one.ids) for one in self.encoded) // 64) * 64)
        self.length = length
        self.layout.check(shape, length)
        self.unit = options.micro_batch * self.layout.data_parallel(self.ranks)

    @property
    def shards(self) -> Path:
        """The masked token shards."""
        return self.out / "shards"

    def model(self, seed: int) -> Path:
        """A fine-tuned model."""
        return self.out / "models" / f"seed-{seed}"

    def windows_per_step(self, packed: Packed) -> int:
        """As many as hold `--batch` rows, about, and no more than there are."""
        wanted = min(self.options.batch * packed.documents / packed.rows, packed.documents)
        return max(1, round(wanted / self.unit)) * self.unit

    def settings(self) -> dict[str, Any]:
        """What the outcome depends on, apart from seeds and layout."""
        from eval.models import checksum

        options = self.options
        keys = ("task", "scoring", "hold_out", "hold_out_seed", "train_rows", "epochs", "lr", "batch", "weight_decay")
        return {
            **{key: getattr(options, key) for key in (*keys, "unpacked", "limit")},
            "model": str(options.model),
            "model_checksum": checksum(options.model),
            "sequence_length": self.length,
            "precision": self.precision(),
            "pretrain": self.pretrain_words,
            "training_rows": self.instructions.inputs,
        }

    def precision(self) -> str:
        """bf16 where there is a GPU, unless asked otherwise."""
        if self.options.precision:
            return str(self.options.precision)
        import torch

        return "bf16" if torch.cuda.is_available() else "fp32"

    def run(self) -> None:
        """All stages that are still to be done; raises `InputError` that names the stage and its log."""
        self._check_settings()
        packed = self._write_shards()
        print(_sizes(self.options.task, packed))
        if not (self.out / "base" / manifest.NAME).is_file():
            words = ["--tensor", self.options.tensor, "--pipeline", self.options.pipeline]
            self._stage("import", "-m", "parallel", "import", self.options.model, self.out / "base", *words)
        for seed in self.options.seeds:
            self._fine_tune(seed, packed)
        self._score()
        results = self._results(packed)
        write_json(self.out / "results.json", results)
        show(results)
        print(f"results: {self.out / 'results.json'}   report: {self.out / 'scores' / 'report.html'}")

    def describe(self) -> str:
        """What a run would do."""
        with tempfile.TemporaryDirectory() as directory:
            packed = self._pack(Path(directory) / "shards")
        per_step = self.windows_per_step(packed)
        config = self._config(self.options.seeds[0], per_step)
        steps = config.steps(packed.documents * packed.sequence_length)
        lines = [
            _sizes(self.options.task, packed),
            f"training: {len(self.options.seeds)} seeds, {steps:,} steps each of {per_step} windows, on {self.ranks} "
            f"processes ({self.layout.describe(self.ranks)}), {config.train.precision}",
            f"scoring: python -m eval {self.options.model} and {len(self.options.seeds)} fine-tuned models "
            + shlex.join(self.instructions.scoring),
            *(f"note: {note}" for note in self.instructions.notes),
        ]
        return "\n".join(lines)

    def _check_settings(self) -> None:
        file, settings = self.out / "settings.json", self.settings()
        if file.is_file():
            if difference := first_difference(read_json(file), settings):
                raise InputError(f"{self.out} was begun with other settings: {difference}; choose another --out")
        else:
            write_json(file, settings)

    def _write_shards(self) -> Packed:
        if not (self.shards / manifest.NAME).is_file():
            return self._pack(self.shards)
        return Packed(**manifest.read(self.shards, "data_shards build")["packed"])

    def _pack(self, directory: Path) -> Packed:
        provenance = {"task": self.options.task, "scoring": self.options.scoring, "notes": self.instructions.notes}
        packed = not self.options.unpacked
        return write(
            directory,
            self.encoded,
            self.options.model,
            self.length,
            packed,
            0,
            provenance,
            list(self.instructions.inputs),
        )

    def _config(self, seed: int, per_step: int) -> PretrainConfig:
        options = self.options
        return PretrainConfig(
            directory=str(self.out / "runs" / f"seed-{seed}"),
            model=ModelConfig(str(self.out / "base")),
            data=DataConfig([SourceConfig(str(self.shards), SOURCE)], self.length, seed),
            parallel=self.layout,
            train=TrainConfig(
                epochs=options.epochs,
                global_batch=per_step,
                micro_batch=options.micro_batch,
                precision=self.precision(),  # type: ignore[arg-type]
                seed=seed,
            ),
            optimizer=OptimizerConfig(lr=options.lr, weight_decay=options.weight_decay),
            schedule=ScheduleConfig("cosine", warmup=0.1),
            checkpoint=CheckpointConfig(every_minutes=30, keep=1),
            tracking=TrackingConfig(name=f"{options.task}-seed-{seed}"),
        )

    def _fine_tune(self, seed: int, packed: Packed) -> None:
        """Train and export one seed; what `pretrain` has begun, it continues."""
        if (self.model(seed) / manifest.NAME).is_file():
            return
        config = self._config(seed, self.windows_per_step(packed))
        file = self.out / "runs" / f"seed-{seed}.toml"
        configs.save(config, file)
        if not self._is_trained(config, packed):
            self._stage(f"train-seed-{seed}", *self._launcher("pretrain"), file, *self.pretrain_words)
        self._stage(f"export-seed-{seed}", "-m", "parallel", "export", config.directory, self.model(seed))
        if not self.options.keep_checkpoints:
            shutil.rmtree(RunDirectory(Path(config.directory)).checkpoints)

    def _is_trained(self, config: PretrainConfig, packed: Packed) -> bool:
        """Whether only the export is missing. With keys of pretrain's own given, pretrain has to tell."""
        checkpoints = RunDirectory(Path(config.directory)).complete_checkpoints()
        if self.pretrain_words or not checkpoints:
            return False
        return bool(read_manifest(checkpoints[0])["step"] >= config.steps(packed.documents * packed.sequence_length))

    def _score(self) -> None:
        """Score the untuned model and all seeds; what was scored before is not scored again."""
        scores, options = self.out / "scores", self.options
        models = [options.model, *(self.model(seed) for seed in options.seeds)]
        words = [*self.instructions.scoring, "--limit", options.limit, "--out", scores]
        launcher = self._launcher("eval") if self.ranks > 1 else ["-m", "eval"]
        (scores / "results.json").unlink(missing_ok=True)
        # Status 1 says that a number must not be used, such as that of an untuned model whose answers do not parse.
        self._stage("score", *launcher, *models, *words, accepted=scores / "results.json")

    def _launcher(self, module: str) -> list[str]:
        return [
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks), "-m", module
        ]  # fmt: skip

    def _stage(self, name: str, *words: object, accepted: Path | None = None) -> None:
        """Run a command of ours with its output in a log; status 1 passes where it left the file `accepted`."""
        log = self.out / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *map(str, words)]
        print(f"{name}: see {log}", flush=True)
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
        if status and not (status == 1 and accepted and accepted.is_file()):
            raise InputError(
                f"stage {name} failed with status {status}: {_reason(log)} ({log} has all of it); the same command "
                "goes on from there"
            )

    def _results(self, packed: Packed) -> dict[str, Any]:
        scored = read_json(self.out / "scores" / "results.json")
        names = {str(Path(model["directory"]).resolve()): name for name, model in scored["models"].items()}
        untuned = names[str(self.options.model.resolve())]
        seeds = {seed: names[str(self.model(seed).resolve())] for seed in self.options.seeds}
        return {
            "format_version": FORMAT_VERSION,
            "code_version": scored["code_version"],
            "packages": scored["packages"],
            "settings": read_json(self.out / "settings.json"),
            "rows": asdict(packed),
            "shards_sha256": sha256_file(self.shards / manifest.NAME),
            "notes": [*self.instructions.notes, *packing_notes(packed, self.options.unpacked)],
            "models": {
                "untuned": scored["models"][untuned]["checksum"],
                **{f"seed {seed}": scored["models"][name]["checksum"] for seed, name in seeds.items()},
            },
            "training": {str(seed): losses(self.out / "runs" / f"seed-{seed}") for seed in seeds},
            "tasks": {
                task: summary(task, first, {seed: scored["results"][name][task] for seed, name in seeds.items()})
                for task, first in scored["results"][untuned].items()
            },
        }


def _sizes(task: str, packed: Packed) -> str:
    return (
        f"{task}: {packed.rows:,} rows in {packed.documents:,} windows of {packed.sequence_length:,} tokens "
        f"({packed.filled:.0%} filled), {packed.targets:,} tokens to learn"
    )


def _reason(log: Path) -> str:
    """The line of a log that says what went wrong: the last one with `error:`, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error")]
    return (said or lines)[-1]
