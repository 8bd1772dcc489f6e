"""ESM-2 features of real proteins, against fair-esm and transformers' EsmModel, both padded in file order.

    python benchmarks/esm_features.py --data DIR

Real yeast proteins (their lengths in file order decide the padding), random weights in the dimensions of the public
8M model (6 layers, width 320, 20 heads), float32, one core. Residues per CPU second of

- ours: packed chains, no padding;
- fair-esm: batches in file order, padded to the longest;
- transformers' EsmModel with scaled-dot-product attention: the same batches;
- the same two with chains sorted by length first, for comparison.

All give the same vectors (1e-5), which is checked first.
"""

import argparse
import copy
import gzip
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import esm  # noqa: E402
import measure  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from esm.model.esm2 import ESM2  # noqa: E402
from transformers import EsmModel  # noqa: E402

from align.esm import collate_proteins, create_protein_encoder, to_fair_esm_names  # noqa: E402
from align.proteins import PAD, tokenise  # noqa: E402

LAYERS, WIDTH, HEADS = 6, 320, 20
OURS = "packed chains (align.esm)"
FAIR, HUGGING_FACE = "fair-esm, padded, file order", "transformers SDPA, padded, file order"
FAIR_SORTED, HUGGING_FACE_SORTED = "fair-esm, padded, sorted by length", "transformers SDPA, padded, sorted by length"


def batches(chains: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Consecutive chains, `size` at a time."""
    return [chains[start : start + size] for start in range(0, len(chains), size)]


def pad(chains: list[np.ndarray]) -> torch.Tensor:
    """[chains, longest]."""
    tensors = [torch.from_numpy(chain) for chain in chains]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD)


def packed_rows(padded: torch.Tensor, chains: list[np.ndarray]) -> torch.Tensor:
    """Padded outputs without their padding."""
    return torch.cat([row[: len(chain)] for row, chain in zip(padded, chains)])


@torch.inference_mode()
def main() -> None:
    """Build the three models with the same weights, prove equal vectors, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with yeast_protein_text/")
    parser.add_argument("--proteins", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16, help="chains of a padded batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args()

    torch.set_num_threads(1)
    with gzip.open(options.data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt", encoding="utf-8") as lines:
        sequences = [json.loads(line)["sequence"] for line, _ in zip(lines, range(options.proteins))]
    chains = [tokenise(sequence) for sequence in sequences]
    in_order, by_length = batches(chains, options.batch), batches(sorted(chains, key=len), options.batch)
    residues = sum(map(len, chains))

    ours = create_protein_encoder(LAYERS, WIDTH, HEADS, seed=0).eval()
    hugging_face = EsmModel(copy.deepcopy(ours.esm.config), add_pooling_layer=False).eval()
    hugging_face.load_state_dict(ours.esm.state_dict(), strict=False)
    hugging_face.set_attn_implementation("sdpa")
    fair = ESM2(LAYERS, WIDTH, HEADS, esm.data.Alphabet.from_architecture("ESM-1b"), token_dropout=True).eval()
    fair.load_state_dict(to_fair_esm_names(ours.esm.state_dict()), strict=False)

    def run_ours(chosen: list[np.ndarray]) -> torch.Tensor:
        return ours(collate_proteins(chosen))

    def run_fair(chosen: list[np.ndarray]) -> torch.Tensor:
        return fair(pad(chosen), repr_layers=[LAYERS])["representations"][LAYERS]

    def run_hugging_face(chosen: list[np.ndarray]) -> torch.Tensor:
        ids = pad(chosen)
        return hugging_face(ids, attention_mask=(ids != PAD).long()).last_hidden_state

    some = sorted(chains, key=len)[:6]
    expected = run_ours(some)
    worst = max((packed_rows(run(some), some) - expected).abs().max().item() for run in (run_fair, run_hugging_face))
    assert worst <= 1e-5, f"the vectors differ by {worst}"
    padding = sum(len(batch) * max(map(len, batch)) for batch in in_order) / residues - 1
    print(
        f"{len(chains)} real yeast proteins, {residues:,} positions, longest {max(map(len, chains))}; file order in "
        f"batches of {options.batch} adds {padding:.0%} padding; vectors equal to {worst:.0e}",
        flush=True,
    )

    def over(run: Callable[[list[np.ndarray]], torch.Tensor], parts: list[list[np.ndarray]]) -> Callable[[], float]:
        def each() -> float:
            for part in parts:
                run(part)
            return residues

        return each

    contenders = {
        OURS: over(run_ours, in_order),
        FAIR: over(run_fair, in_order),
        HUGGING_FACE: over(run_hugging_face, in_order),
        FAIR_SORTED: over(run_fair, by_length),
        HUGGING_FACE_SORTED: over(run_hugging_face, by_length),
    }
    rates = measure.in_turn(contenders, options.repeats)
    results, rows = {}, []
    for name, values in rates.items():
        own = measure.summary(values, values)
        results[name] = own | {"ours_is": measure.summary(rates[OURS], values)["ratio"]}
        cells = [f"{own[key]:,.0f}" for key in ("min", "median", "max")]
        rows.append([name, *cells, f"{results[name]['ours_is']:.2f}"])
    described = measure.machine("torch", "transformers", "fair-esm")
    print(f"\n{described}; {options.repeats} repeats in turn\n")
    print(measure.markdown(["residues/s per core", "min", "median", "max", "ours is ×"], rows))
    measure.save(options.output, {"machine": described, "residues": residues, "results": results})


if __name__ == "__main__":
    main()
