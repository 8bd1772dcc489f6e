"""One alignment step, answer tokens per CPU second: ours, with and without cached encoders, and the obvious way.

    python benchmarks/align_step.py --data ../shared/data/open

Real ChEBI-20 and yeast-protein questions in their natural mix; random weights in the proportions of the 10B (language
model : protein encoder = 7 : 3, GIN 5 x 300), float32, one core, adapters trained. The obvious way: questions in random
order, eight to a batch, padded to the longest; proteins padded through transformers' EsmModel with scaled-dot-product
attention; logits of every position. The same questions a step on all sides; the first losses must agree (1e-4).
"""

import argparse
import csv
import gzip
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import measure  # noqa: E402
import sentencepiece  # noqa: E402
import torch  # noqa: E402
from transformers import EsmModel, LlamaConfig, LlamaForCausalLM  # noqa: E402

from align import assemble, engine  # noqa: E402
from align.config import (  # noqa: E402
    AlignConfig,
    DataConfig,
    ModelConfig,
    MoleculeConfig,
    ParallelConfig,
    ProteinConfig,
    SourceConfig,
    TrainConfig,
)
from align.esm import create_protein_encoder  # noqa: E402
from align.examples import PLACES  # noqa: E402
from align.gnn import MoleculeEncoder  # noqa: E402
from align.inputs import open_inputs  # noqa: E402
from align.proteins import PAD  # noqa: E402
from align.question_shards import STAGE, write_split  # noqa: E402
from align.questions import FUNCTION, MOLECULE_QUESTION, Question  # noqa: E402
from align.trainer import Trainer  # noqa: E402
from job import manifest  # noqa: E402
from job.directory import RunDirectory  # noqa: E402

RATE, BATCH = 1e-3, 8
HIDDEN, LAYERS, VOCABULARY = 192, 6, 2048
SHARE = 400  # ChEBI-20 rows that are read, and yeast rows in the same proportion: enough for the timed steps
ESM_LAYERS, ESM_WIDTH, ESM_HEADS = 3, 192, 12


def make_inputs(data: Path, folder: Path, questions: int) -> AlignConfig:
    """Questions, tokenizer, language model and encoders in `folder`, and the config that names them."""
    with open(data / "chebi20" / "train_open.txt", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    molecules = [Question(f"chebi20:{r['CID']}", MOLECULE_QUESTION, r["description"], (r["SMILES"],)) for r in rows]
    with gzip.open(data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["description"]]
    proteins = [
        Question(f"yeast:{r['accession']}", FUNCTION, r["description"], proteins=(r["sequence"],)) for r in rows
    ]
    molecules, proteins = molecules[:: len(molecules) // SHARE], proteins[:: len(molecules) // SHARE]
    for name, found in (("chebi20", molecules), ("yeast", proteins)):
        infos = {"train": write_split(folder / name / "train", (question.to_json() for question in found))}
        infos |= {split: write_split(folder / name / split, ()) for split in ("validation", "test")}
        splits = {split: [vars(info) for info in entries] for split, entries in infos.items()}
        manifest.write(folder / name, STAGE, {}, [], {"splits": splits})
    model = folder / "language-model"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=HIDDEN * 8 // 3,
            num_hidden_layers=LAYERS,
            num_attention_heads=HIDDEN // 32,
            num_key_value_heads=HIDDEN // 32,
            max_position_embeddings=2048,
        )
    ).save_pretrained(model)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([question.answer for question in [*molecules, *proteins]]),
        model_prefix=str(model / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    create_protein_encoder(ESM_LAYERS, ESM_WIDTH, ESM_HEADS, seed=1).esm.save_pretrained(folder / "esm")
    torch.save(MoleculeEncoder().state_dict(), folder / "gin.pth")
    return AlignConfig(
        directory=str(folder / "run"),
        model=ModelConfig(str(model)),
        molecule=MoleculeConfig(weights=str(folder / "gin.pth")),
        protein=ProteinConfig(weights=str(folder / "esm")),
        data=DataConfig(
            [SourceConfig(str(folder / "chebi20")), SourceConfig(str(folder / "yeast"))],
            token_budget=4096,  # half of what the longest of the obvious batches takes
        ),
        parallel=ParallelConfig(stage=2),
        train=TrainConfig(steps=1 << 20, global_batch=questions, precision="fp32"),
    )


class Ours:
    """The step of `align train`."""

    def __init__(self, config: AlignConfig) -> None:
        config.optimizer.lr, config.schedule.style, config.schedule.warmup = RATE, "constant", 0
        self.trainer = Trainer(config, open_inputs(config), RunDirectory(Path(config.directory)), 1)
        self.losses: list[float] = []

    def step(self) -> float:
        values = self.trainer.step()
        self.losses.append(values["train/loss"])
        return values["train/answer_tokens"]


class Obvious:
    """What one writes first."""

    def __init__(self, config: AlignConfig) -> None:
        self.model = assemble.build(config).train()
        self.order, self.count, self.steps = open_inputs(config).order, config.train.global_batch, 0
        encoder = self.model.protein_encoder.esm
        self.esm = EsmModel.from_pretrained(config.protein.weights, add_pooling_layer=False).eval()
        assert self.esm.config._attn_implementation == "sdpa"
        differing = [
            name for name, value in encoder.state_dict().items() if not value.equal(self.esm.state_dict()[name])
        ]
        assert not differing, differing
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in self.trained if p.dim() > 1], "weight_decay": config.optimizer.weight_decay},
            {"params": [p for p in self.trained if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=RATE, betas=(config.optimizer.beta1, config.optimizer.beta2))
        self.losses: list[float] = []

    def step(self) -> float:
        first = self.steps * self.count
        questions = [self.order.question(number)[0] for number in range(first, first + self.count)]
        examples = [self.model.encoding.example(question) for question in questions]
        answer_tokens = sum(int((example.labels != -100).sum()) for example in examples)
        total = 0.0
        self.adamw.zero_grad()
        for start in range(0, len(examples), BATCH):
            loss = self.loss(examples[start : start + BATCH]) / answer_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.adamw.step()
        self.steps += 1
        self.losses.append(total)
        return answer_tokens

    def loss(self, examples: list) -> torch.Tensor:
        model, batch = self.model, self.model.encoding.collate(examples)
        embedded = model.language_model.get_input_embeddings()(batch.ids.clamp(min=0))
        chains = [chain for example in examples for chain in example.proteins]
        with torch.no_grad():
            atoms = model.molecule_encoder(batch.molecules)
            if chains:
                ids = torch.nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, chains)), True, PAD)
                states = self.esm(input_ids=ids, attention_mask=(ids != PAD).long()).last_hidden_state
                residues = states[ids != PAD]
        if len(atoms):
            vectors = model.molecule_adapter(atoms, batch.molecules.lengths)
            embedded = embedded.masked_scatter((batch.ids == PLACES["molecule"])[:, :, None], vectors)
        if chains:
            vectors = model.protein_adapter(residues, batch.proteins.lengths)
            embedded = embedded.masked_scatter((batch.ids == PLACES["protein"])[:, :, None], vectors)
        output = model.language_model(inputs_embeds=embedded, attention_mask=batch.attention_mask, use_cache=False)
        logits = output.logits[:, :-1].float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, batch.labels[:, 1:].flatten(), reduction="sum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with chebi20/ and yeast_protein_text/")
    parser.add_argument("--questions", type=int, default=64, help="questions of a step")
    parser.add_argument("--repeats", type=int, default=3, help="steps of each contender")
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine.join(600, seed=1, deterministic=False)
    with tempfile.TemporaryDirectory() as folder:
        config = make_inputs(options.data, Path(folder), options.questions)
        obvious, ours = Obvious(config), Ours(config)
        # The cache holds the features of what the timed steps will ask for; filling it is not timed.
        config.data.cache_directory = str(Path(folder) / "cache")
        cached = Ours(config)
        contenders = {"obvious": obvious.step, "ours": ours.step, "ours, encoders cached": cached.step}
        for run in contenders.values():
            run()  # warms up
        rates = measure.in_turn(contenders, options.repeats)
    for other in (ours, cached):
        assert all(abs(a - b) < 1e-4 for a, b in zip(obvious.losses[:2], other.losses[:2])), (
            obvious.losses,
            other.losses,
        )
    found = {name: measure.summary(values, rates["obvious"]) for name, values in rates.items()}
    print(measure.machine("torch", "transformers", "deepspeed"))
    print(
        measure.markdown(
            ["answer tokens per CPU second", "min", "median", "max", "against the obvious way"],
            [
                [name, *(f"{row[key]:,.1f}" for key in ("min", "median", "max")), f"{row['ratio']:.2f} x"]
                for name, row in found.items()
            ],
        )
    )
    measure.save(options.save, found)
    engine.shutdown()


if __name__ == "__main__":
    main()
