"""Peak memory of a rank when a registered language model is trained whole: ZeRO-3 at 1, 2 and 4 ranks, and DDP.

    python benchmarks/zero_memory.py --data ../shared/data/open

A Llama of random weights, GIN 5 x 300, real ChEBI-20 questions, float32, gloo on one machine. Each row is a run of its
own in fresh processes. "Peak" is the most memory a process held (VmHWM) in the second and third step beyond what it
held before it loaded the model; "states" are weights, gradients and Adam's two moments as they lie after a step.
By the formula of the ZeRO paper (Rajbhandari et al. 2020, section 5), states of P parameters take 16 P bytes on every
rank of DDP, and 16 P / N at stage 3, besides what is gathered to compute a layer. DeepSpeed keeps one more float32 copy
where its own mixed precision is off, of the weights it computes with beside those it updates: 20 P / N. P here is the
language model's; the molecule encoder adds 8 %.
"""

import argparse
import csv
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 17)  # tensors that are freed go back to the system, as on a GPU
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import measure  # noqa: E402

MIB = 2**20


def make_model(data: Path, folder: Path, hidden: int, layers: int) -> None:
    """A language model of the wanted size with a real tokenizer, and questions in `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from align.language_model import load_tokenizer
    from align.question_shards import STAGE, write_split
    from align.questions import MOLECULE_QUESTION, Question
    from job import manifest

    with open(data / "chebi20" / "train_open.txt", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))[:300]
    found = [Question(f"chebi20:{r['CID']}", MOLECULE_QUESTION, r["description"], (r["SMILES"],)) for r in rows]
    short = [question for question in found if len(question.answer) < 200 and len(question.molecules[0]) < 60]
    infos = {"train": write_split(folder / "data" / "train", (question.to_json() for question in short))}
    infos |= {split: write_split(folder / "data" / split, ()) for split in ("validation", "test")}
    splits = {split: [vars(info) for info in entries] for split, entries in infos.items()}
    manifest.write(folder / "data", STAGE, {}, [], {"splits": splits})
    load_tokenizer(data / "stories260K" / "hf").save_pretrained(folder / "lm")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=1024,
        )
    ).save_pretrained(folder / "lm")


def make_config(folder: Path, stage: int):
    """A run that trains everything on four questions a step."""
    from align.config import (
        AlignConfig,
        DataConfig,
        ModelConfig,
        MoleculeConfig,
        ParallelConfig,
        ProteinConfig,
        SourceConfig,
        TrainConfig,
        TuneConfig,
    )

    return AlignConfig(
        directory=str(folder / "run"),
        model=ModelConfig(str(folder / "lm"), max_length=1024),
        molecule=MoleculeConfig(),
        protein=ProteinConfig(use=False),
        tune=TuneConfig("all"),
        data=DataConfig([SourceConfig(str(folder / "data"))], token_budget=400),
        parallel=ParallelConfig(stage),
        train=TrainConfig(steps=1 << 20, global_batch=4, precision="fp32", recompute=True),
    )


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def zero_step(config):
    """The step of `align train` and the tensors that hold its states."""
    from align.engine import MOMENTS
    from align.inputs import open_inputs
    from align.trainer import Trainer
    from job.directory import RunDirectory

    trainer = Trainer(config, open_inputs(config), RunDirectory(Path(config.directory)), 1)

    def states():
        zero = trainer.engine._zero
        tensors = [*zero.fp32_partitioned_groups_flat]
        tensors += [zero.optimizer.state[flat][key] for flat in zero.fp32_partitioned_groups_flat for key in MOMENTS]
        tensors += [parameter.ds_tensor for parameter in trainer.engine.trained.values()]
        tensors.append(zero.grad_partitions_flat_buffer)
        return tensors

    return trainer.step, states


def ddp_step(config):
    """The same model in DistributedDataParallel, as torch's own tutorial has it."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from align import assemble
    from align.batches import TrainingBatches
    from align.inputs import open_inputs

    model = assemble.build(config)
    model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = TrainingBatches(open_inputs(config).order, model.encoding, 4, config.data.token_budget, rank, world)
    done = [0]

    def step():
        adamw.zero_grad()
        for batch in batches.take(done[0]).batches:
            (wrapped(batch) / max(1, batch.answer_tokens)).backward()
        adamw.step()
        done[0] += 1

    def states():
        moments = [value for state in adamw.state.values() for value in state.values()]
        return [*model.parameters(), *(p.grad for p in model.parameters()), *moments]

    return step, states


def rank_main(kind: str, rank: int, world: int, port: int, folder: str, results) -> None:
    """One rank: build, three steps, and how much memory that took."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (before the base line: what it imports is large)
    import torch

    torch.set_num_threads(1)
    from align import engine, trainer  # noqa: F401

    engine.join(600, 1, False)
    base = resident("VmRSS")
    step, states = (zero_step if kind == "ZeRO-3" else ddp_step)(
        make_config(Path(folder), 3 if kind == "ZeRO-3" else 0)
    )
    step()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew: of training, not of building
    for _ in range(2):
        step()
    held = sum(tensor.numel() * tensor.element_size() for tensor in states() if tensor is not None)
    results.put((rank, resident("VmHWM") - base, held))
    results.close()
    results.join_thread()  # what was put is through
    torch.distributed.barrier()
    os._exit(0)


def measure_run(kind: str, world: int, folder: str, port: int) -> tuple[int, int]:
    """Largest peak and largest states of a rank, in bytes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=rank_main, args=(kind, rank, world, port, folder, results)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return max(peak for _, peak, _ in found), max(held for _, _, held in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with chebi20/ and stories260K/")
    parser.add_argument("--hidden", type=int, default=512, help="width of the language model")
    parser.add_argument("--layers", type=int, default=8, help="its layers")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="ranks of the ZeRO-3 runs")
    parser.add_argument("--save", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    rows, numbers = [], {}
    runs = [("DDP", 2), *(("ZeRO-3", world) for world in options.ranks)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(options.data, Path(folder), options.hidden, options.layers)
        header = next(Path(folder, "lm").glob("*.safetensors"))
        with open(header, "rb") as handle:
            shapes = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        weights = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for n, entry in shapes.items() if n[0] != "_")
        for number, (kind, world) in enumerate(runs):
            peak, held = measure_run(kind, world, folder, 21700 + number)
            formula = 4 * weights / (world if kind == "ZeRO-3" else 1)
            numbers[f"{kind} {world}"] = {"peak": peak, "states": held, "formula": formula}
            rows.append([kind, str(world), *(f"{value / MIB:,.0f}" for value in (peak, held, formula))])
    print(measure.machine("torch", "deepspeed"))
    print(f"language model of {weights // 4:,} parameters, {weights / MIB:,.0f} MiB")
    print(measure.markdown(["", "ranks", "peak MiB a rank", "states MiB a rank", "formula, 16 P / N"], rows))
    measure.save(options.save, numbers)


if __name__ == "__main__":
    main()
