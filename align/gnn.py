"""The molecule encoder: the 2D graph network of GraphMVP and pretrain-gnns, one vector per atom.

GIN (Xu et al. 2019, with bond embeddings as in Hu et al. 2020, "Strategies for pre-training graph neural networks"),
five layers of width 300, is what BioMedGPT uses; the GCN of the same authors shares everything but the aggregation.
Parameters are named as in their public checkpoints, which therefore load strictly. The encoder is float32 throughout,
also under autocast: in bfloat16 a pretrained one is off by two thirds of its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import MessagePassing

from align.molecules import MoleculeGraph
from job.errors import InputError, first_line

Kind = Literal["gin", "gcn"]
BatchNormMode = Literal["fixed", "synchronised"]

_ELEMENTS, _CHIRALITIES, _BOND_TYPES, _BOND_DIRECTIONS = 120, 3, 6, 3
_SELF_LOOP = 4  # the bond type of an atom's edge to itself
_NAMES_SHOWN = 3


class MoleculeBatch(NamedTuple):
    """Several molecules as one graph of N atoms and E directed edges."""

    atoms: Tensor
    """int64 [N, 2]: element and chirality rows."""
    edges: Tensor
    """int64 [2, E]: from and to, numbered over the batch."""
    bonds: Tensor
    """int64 [E, 2]: type and direction rows."""
    lengths: tuple[int, ...]
    """Atoms of each molecule."""

    def to(self, device: torch.device | str) -> MoleculeBatch:
        """The same batch on another device."""
        atoms, edges, bonds = (tensor.to(device, non_blocking=True) for tensor in (self.atoms, self.edges, self.bonds))
        return MoleculeBatch(atoms, edges, bonds, self.lengths)


def collate_graphs(graphs: Sequence[MoleculeGraph]) -> MoleculeBatch:
    """One graph of all `graphs`, which keep their order; none at all is a batch of no atoms."""
    lengths = tuple(len(graph.atoms) for graph in graphs)
    if not graphs:
        atoms, edges, bonds = (torch.zeros(shape, dtype=torch.int64) for shape in ((0, 2), (2, 0), (0, 2)))
        return MoleculeBatch(atoms, edges, bonds, lengths)
    starts = np.cumsum((0, *lengths[:-1]))
    return MoleculeBatch(
        torch.from_numpy(np.concatenate([graph.atoms for graph in graphs])),
        torch.from_numpy(np.concatenate([graph.edges + start for graph, start in zip(graphs, starts)], axis=1)),
        torch.from_numpy(np.concatenate([graph.bonds for graph in graphs])),
        lengths,
    )


class MoleculeEncoder(nn.Module):
    """Atoms and bonds to one float32 vector per atom: the last layer's representation.

    Args:
        kind: "gin" sums messages into an MLP; "gcn" averages them by degree after a linear map.
        layers: message-passing steps.
        width: of every representation.
        dropout: after each layer, in training.

    A new encoder has `batch_norm_mode` "synchronised": in training its statistics are those of all ranks' atoms, and
    every rank must run it the same number of times, forward and backward, if need be with no atoms. For pretrained
    weights set "fixed", as `load_molecule_weights` does: their running statistics are used, also in training.
    """

    def __init__(self, kind: Kind = "gin", layers: int = 5, width: int = 300, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.width = width
        self.dropout = dropout
        self.x_embedding1 = _embedding(_ELEMENTS, width)
        self.x_embedding2 = _embedding(_CHIRALITIES, width)
        layer = {"gin": _GINLayer, "gcn": _GCNLayer}[kind]
        self.gnns = nn.ModuleList(layer(width) for _ in range(layers))
        self.batch_norms = nn.ModuleList(SynchronisedBatchNorm(width) for _ in range(layers))

    @property
    def signature(self) -> dict[str, Any]:
        """What else than its weights an output depends on."""
        return {"kind": self.kind}

    @property
    def batch_norm_mode(self) -> BatchNormMode:
        """Where batch normalisation takes its statistics from in training; see the class."""
        return "fixed" if self.batch_norms[0].fixed else "synchronised"

    @batch_norm_mode.setter
    def batch_norm_mode(self, mode: BatchNormMode) -> None:
        if mode not in ("fixed", "synchronised"):
            raise ValueError(f"batch_norm_mode is 'fixed' or 'synchronised', not {mode!r}")
        for batch_norm in self.batch_norms:
            cast(SynchronisedBatchNorm, batch_norm).fixed = mode == "fixed"

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Representations, float32 [N, width], of a batch of N atoms; N may be 0.

        Raises `RuntimeError` where the weights were cast to a shorter type.
        """
        if self.x_embedding1.weight.dtype.itemsize < torch.float32.itemsize:
            raise RuntimeError(f"the molecule encoder is {self.x_embedding1.weight.dtype}; keep it in float32")
        with torch.autocast(batch.atoms.device.type, enabled=False):
            hidden = self.x_embedding1(batch.atoms[:, 0]) + self.x_embedding2(batch.atoms[:, 1])
            edges, bonds = _with_self_loops(batch)
            for number, (layer, batch_norm) in enumerate(zip(self.gnns, self.batch_norms), start=1):
                hidden = batch_norm(layer(hidden, edges, bonds))
                if number < len(self.gnns):
                    hidden = functional.relu(hidden)
                hidden = functional.dropout(hidden, self.dropout, self.training)
            return hidden


class _Layer(MessagePassing):
    """What both aggregations share: a message is the neighbour's representation plus the bond's embedding."""

    def __init__(self, width: int) -> None:
        super().__init__(aggr="add")
        self.edge_embedding1 = _embedding(_BOND_TYPES, width)
        self.edge_embedding2 = _embedding(_BOND_DIRECTIONS, width)

    def bond_embeddings(self, bonds: Tensor) -> Tensor:
        """float32 [E, width]."""
        return self.edge_embedding1(bonds[:, 0]) + self.edge_embedding2(bonds[:, 1])


class _GINLayer(_Layer):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor, edges: Tensor, bonds: Tensor) -> Tensor:
        return self.mlp(self.propagate(edges, hidden=hidden, bond=self.bond_embeddings(bonds)))

    def message(self, hidden_j: Tensor, bond: Tensor) -> Tensor:
        return hidden_j + bond


class _GCNLayer(_Layer):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor, edges: Tensor, bonds: Tensor) -> Tensor:
        degrees = torch.bincount(edges[0], minlength=len(hidden)).to(hidden.dtype)  # at least 1: the self loop
        scale = degrees.rsqrt()
        weights = scale[edges[0]] * scale[edges[1]]
        return self.propagate(
            edges, hidden=self.linear(hidden), bond=self.bond_embeddings(bonds), weight=weights[:, None]
        )

    def message(self, hidden_j: Tensor, bond: Tensor, weight: Tensor) -> Tensor:
        return weight * (hidden_j + bond)


class SynchronisedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of [N, width] whose training statistics are those of all ranks' rows together.

    torch's own `SyncBatchNorm` needs CUDA and a row on every rank; this works on any backend, and a rank may have no
    rows. The gradient is that of the sum of all ranks' losses. Names are those of `nn.BatchNorm1d`. With `fixed`, the
    running statistics are used in training too.
    """

    fixed = False

    def forward(self, rows: Tensor) -> Tensor:
        """Normalised rows [N, width]; in training (unless `fixed`) also updates the running statistics."""
        if self.fixed or not self.training:
            return functional.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        totals = _sum_over_ranks(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
        count = totals[-1].detach().clamp(min=1)
        mean = totals[:-1] / count
        centred = rows - mean
        variance = _sum_over_ranks(centred.square().sum(0)) / count
        self._update_running_statistics(mean.detach(), variance.detach(), totals[-1].detach())
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        # Without data-dependent branches: asking for the count would wait for the device.
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        any_rows = count > 0
        momentum = any_rows.to(count) * cast(float, self.momentum)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased, momentum)
        self.num_batches_tracked += any_rows


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the ranks' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def _sum_over_ranks(value: Tensor) -> Tensor:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    return _SumOverRanks.apply(value)


def _embedding(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width)
    nn.init.xavier_uniform_(embedding.weight)
    return embedding


def _with_self_loops(batch: MoleculeBatch) -> tuple[Tensor, Tensor]:
    atoms = torch.arange(len(batch.atoms), device=batch.atoms.device)
    bonds = batch.bonds.new_zeros(len(atoms), 2)
    bonds[:, 0] = _SELF_LOOP
    return torch.cat([batch.edges, atoms.expand(2, -1)], dim=1), torch.cat([batch.bonds, bonds])


def load_molecule_weights(encoder: MoleculeEncoder, path: Path) -> None:
    """Load a public checkpoint (`.pth`, `.pt`: a plain state dict; or `.safetensors`) strictly, and fix batch norms.

    Raises `InputError` that names what is missing, left over, of another shape or not finite; the encoder is then
    unchanged.
    """
    path = Path(path)
    weights = _read_state(path)
    expected = encoder.state_dict()
    missing = [name for name in expected if name not in weights]
    extra = [name for name in weights if name not in expected]
    if missing or extra:
        problems = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(extra)} too many"] * bool(extra)
        other = {"gin": "gcn", "gcn": "gin"}[encoder.kind]
        marker = {"gin": "gnns.0.mlp.0.weight", "gcn": "gnns.0.linear.weight"}[other]
        hint = f"; it holds a {other.upper()}, so set kind to '{other}'" if marker in weights else ""
        described = f"a {encoder.kind.upper()} of {len(encoder.gnns)} layers"
        raise InputError(f"{path} does not fit {described}: it {' and '.join(problems)}{hint}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path} does not fit the encoder: {name} has shape {list(tensor.shape)} instead of "
                f"{list(expected[name].shape)}; set layers and width as the checkpoint has them"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path} is damaged: {name} holds values that are not finite; copy it again")
    encoder.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in weights.items()})
    encoder.batch_norm_mode = "fixed"


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a molecule encoder's checkpoint (.pth, .pt or .safetensors)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(f"{path} is not a checkpoint of tensors ({first_line(error)}); copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} is not a plain state dict of tensors; save `encoder.state_dict()` of the 2D model")
    return state


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
