"""The molecule encoder against an independent reference, real checkpoints, and its batch norm over ranks."""

import datetime

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from align.gnn import MoleculeEncoder, SynchronisedBatchNorm, collate_graphs, load_molecule_weights
from align.molecules import MoleculeGraph, featurise
from job.errors import InputError
from tests.align.molecules import chebi20
from tests.ranks.fork import run_ranks

CHECKPOINTS = ("gcn_contextpred", "gcn_supervised_contextpred")
EDGE_CASES = ["C", "[Na+].[Cl-]", "*C", "[NH3]->[Pt]", "F/C=C/F", "[Co@OH1](Cl)(Cl)(Cl)(Cl)(Cl)Cl", "CC(=O)O.CCN"]


@pytest.fixture(scope="module")
def graphs(real_data):
    return [featurise(smiles, max_atoms=600) for smiles in [*EDGE_CASES, *chebi20(real_data)[:40]]]


def reference(state, graph, kind, layers=5):
    """The published definition on one molecule, message by message, without torch-geometric; evaluation mode."""
    atoms = torch.from_numpy(graph.atoms)
    hidden = state["x_embedding1.weight"][atoms[:, 0]] + state["x_embedding2.weight"][atoms[:, 1]]
    count = len(atoms)
    source = torch.cat([torch.from_numpy(graph.edges[0]), torch.arange(count)])
    target = torch.cat([torch.from_numpy(graph.edges[1]), torch.arange(count)])
    loops = torch.tensor([[4, 0]]).repeat(count, 1)
    bonds = torch.cat([torch.from_numpy(graph.bonds), loops])
    degree = torch.zeros(count, dtype=hidden.dtype).index_add(0, source, torch.ones(len(source), dtype=hidden.dtype))
    for layer in range(layers):
        name = f"gnns.{layer}."
        bond = state[f"{name}edge_embedding1.weight"][bonds[:, 0]] + state[f"{name}edge_embedding2.weight"][bonds[:, 1]]
        if kind == "gcn":
            hidden = hidden @ state[f"{name}linear.weight"].T + state[f"{name}linear.bias"]
        message = hidden[source] + bond
        if kind == "gcn":
            message = message / (degree[source] * degree[target]).sqrt()[:, None]
        hidden = torch.zeros_like(hidden).index_add(0, target, message)
        if kind == "gin":
            hidden = (hidden @ state[f"{name}mlp.0.weight"].T + state[f"{name}mlp.0.bias"]).clamp(min=0)
            hidden = hidden @ state[f"{name}mlp.2.weight"].T + state[f"{name}mlp.2.bias"]
        norm = f"batch_norms.{layer}."
        hidden = (hidden - state[f"{norm}running_mean"]) / (state[f"{norm}running_var"] + 1e-5).sqrt()
        hidden = hidden * state[f"{norm}weight"] + state[f"{norm}bias"]
        if layer < layers - 1:
            hidden = hidden.clamp(min=0)
    return hidden


def doubles(state):
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def trained(kind="gin", seed=0, graphs=(), **shape):
    """An encoder whose running statistics are those of real molecules, not zeros and ones."""
    torch.manual_seed(seed)
    encoder = MoleculeEncoder(kind, **shape)
    for batch_norm in encoder.batch_norms:
        batch_norm.momentum = 1.0
    with torch.no_grad():
        encoder(collate_graphs(graphs))
    return encoder.eval()


@pytest.mark.parametrize("kind", ["gin", "gcn"])
def test_equals_the_reference_on_real_molecules(graphs, kind):
    encoder = trained(kind, graphs=graphs)
    state = doubles(encoder.state_dict())
    expected = torch.cat([reference(state, graph, kind) for graph in graphs])
    with torch.no_grad():
        output = encoder(collate_graphs(graphs))
        exact = encoder.double()(collate_graphs(graphs))
    assert output.shape == (sum(len(graph.atoms) for graph in graphs), 300) and output.dtype == torch.float32
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max() and expected.abs().mean() > 0.1
    assert (exact - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_real_checkpoints_load_strictly(real_data, graphs, name, suffix, tmp_path):
    path = real_data / "gnn_checkpoints" / f"{name}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    if suffix == ".safetensors":
        path = tmp_path / f"{name}.safetensors"
        save_file(state, path)
    encoder = MoleculeEncoder("gcn")
    load_molecule_weights(encoder, path)
    assert encoder.batch_norm_mode == "fixed"
    assert encoder.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    expected = torch.cat([reference(doubles(state), graph, "gcn") for graph in graphs])
    with torch.no_grad():
        output = encoder.train()(collate_graphs(graphs))
    assert output.isfinite().all()
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()  # these reach several hundred


def test_gin_names_are_those_of_public_checkpoints():
    shapes = {name: tuple(tensor.shape) for name, tensor in MoleculeEncoder("gin").state_dict().items()}
    expected = {"x_embedding1.weight": (120, 300), "x_embedding2.weight": (3, 300)}
    for layer in range(5):
        expected |= {
            f"gnns.{layer}.mlp.0.weight": (600, 300),
            f"gnns.{layer}.mlp.0.bias": (600,),
            f"gnns.{layer}.mlp.2.weight": (300, 600),
            f"gnns.{layer}.mlp.2.bias": (300,),
            f"gnns.{layer}.edge_embedding1.weight": (6, 300),
            f"gnns.{layer}.edge_embedding2.weight": (3, 300),
            f"batch_norms.{layer}.num_batches_tracked": (),
        }
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"batch_norms.{layer}.{part}"] = (300,)
    assert shapes == expected


def test_saved_gin_loads(graphs, tmp_path):
    encoder = trained(graphs=graphs)
    torch.save(encoder.state_dict(), tmp_path / "gin.pth")
    other = MoleculeEncoder("gin").eval()
    batch = collate_graphs(graphs)
    with torch.no_grad():
        assert not torch.allclose(other(batch), encoder(batch), atol=0.1), "a random encoder looks like the loaded one"
        load_molecule_weights(other, tmp_path / "gin.pth")
        assert torch.equal(other(batch), encoder(batch))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("gnns.3.linear.bias"), r"a GCN of 5 layers: it lacks gnns\.3\.linear\.bias$"),
        (lambda state: state.update(head=torch.zeros(2)), r"has head too many$"),
        (
            lambda state: state.update({"x_embedding1.weight": torch.zeros(119, 300)}),
            r"x_embedding1\.weight has shape \[119, 300\] instead of \[120, 300\]",
        ),
        (
            lambda state: state["batch_norms.2.running_var"].fill_(torch.nan),
            r"batch_norms\.2\.running_var .*not finite",
        ),
        (lambda state: state.update(epoch=3), "not a plain state dict"),
    ],
)
def test_wrong_checkpoints_are_named(real_data, tmp_path, damage, message):
    state = torch.load(real_data / "gnn_checkpoints" / "gcn_contextpred.pth", map_location="cpu", weights_only=True)
    damage(state)
    torch.save(state, tmp_path / "wrong.pth")
    encoder = MoleculeEncoder("gcn")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        load_molecule_weights(encoder, tmp_path / "wrong.pth")
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_files_that_are_no_checkpoint(real_data, tmp_path):
    path = real_data / "gnn_checkpoints" / "gcn_contextpred.pth"
    with pytest.raises(InputError, match="it holds a GCN, so set kind to 'gcn'"):
        load_molecule_weights(MoleculeEncoder("gin"), path)
    with pytest.raises(InputError, match=r"3 layers: it has gnns\.3\..* and \d+ more too many"):
        load_molecule_weights(MoleculeEncoder("gcn", layers=3), path)
    with pytest.raises(InputError, match=r"shape \[120, 300\] instead of \[120, 64\]"):
        load_molecule_weights(MoleculeEncoder("gcn", width=64), path)
    with pytest.raises(InputError, match="does not exist"):
        load_molecule_weights(MoleculeEncoder("gcn"), tmp_path / "none.pth")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(path.read_bytes()[:1000])
        with pytest.raises(InputError, match="not a checkpoint of tensors"):
            load_molecule_weights(MoleculeEncoder("gcn"), tmp_path / name)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_checkpoints_run_no_code(tmp_path, capsys):
    torch.save({"x_embedding1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="not a checkpoint of tensors"):
        load_molecule_weights(MoleculeEncoder("gin"), tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


def test_batched_equals_single(graphs):
    encoder = trained(graphs=graphs, layers=3, width=64)
    with torch.no_grad():
        together = encoder(collate_graphs(graphs))
        single = torch.cat([encoder(collate_graphs([graph])) for graph in graphs])
    assert (together - single).abs().max() <= 1e-5


def test_bonds_count(graphs):
    """Bonds given to other atoms, other types or directions change the output; their order does not."""
    encoder = trained(graphs=graphs, layers=3, width=64)
    graph = max(graphs[:20], key=lambda graph: graph.bonds[:, 1].any() * 1000 + len(graph.atoms))
    rng = np.random.default_rng(0)

    def output(**changes):
        fields = {"atoms": graph.atoms, "edges": graph.edges, "bonds": graph.bonds} | changes
        with torch.no_grad():
            return encoder(collate_graphs([MoleculeGraph(**fields)]))

    order = rng.permutation(graph.edges.shape[1])
    assert (output(edges=graph.edges[:, order], bonds=graph.bonds[order]) - output()).abs().max() <= 1e-5
    assert (output(edges=graph.edges[:, order]) - output()).abs().max() > 0.01, "which atoms a bond joins is ignored"
    atoms = rng.permutation(len(graph.atoms))
    assert (output(edges=atoms[graph.edges]) - output()).abs().max() > 0.01, "which atoms are bonded is ignored"
    for column in (0, 1):
        bonds = graph.bonds.copy()
        bonds[:, column] = (bonds[:, column] + 1) % 3
        assert (output(bonds=bonds) - output()).abs().max() > 0.01
    assert (output(edges=graph.edges[:, :0], bonds=graph.bonds[:0]) - output()).abs().max() > 0.01


def test_renumbered_atoms_give_renumbered_vectors(graphs):
    encoder = trained(graphs=graphs, layers=3, width=64)
    graph = graphs[10]
    order = np.random.default_rng(1).permutation(len(graph.atoms))
    renumbered = MoleculeGraph(graph.atoms[np.argsort(order)], order[graph.edges], graph.bonds)
    with torch.no_grad():
        first, second = encoder(collate_graphs([graph])), encoder(collate_graphs([renumbered]))
    assert (second[order] - first).abs().max() <= 1e-5


def test_stays_float32(graphs):
    encoder = trained(graphs=graphs, layers=2, width=32)
    batch = collate_graphs(graphs)
    with torch.no_grad():
        plain = encoder(batch)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder(batch), plain)
    with pytest.raises(RuntimeError, match="keep it in float32"):
        encoder.bfloat16()(batch)


def test_modes_of_batch_norm(graphs):
    encoder = MoleculeEncoder(layers=2, width=32)
    assert encoder.batch_norm_mode == "synchronised"
    encoder.batch_norm_mode = "fixed"
    encoder.train()(collate_graphs(graphs))
    assert not encoder.batch_norms[0].running_mean.any() and encoder.batch_norms[0].num_batches_tracked == 0
    encoder.batch_norm_mode = "synchronised"
    encoder(collate_graphs(graphs))
    assert encoder.batch_norms[0].running_mean.any() and encoder.batch_norms[0].num_batches_tracked == 1
    with pytest.raises(ValueError, match="'fixed' or 'synchronised'"):
        encoder.batch_norm_mode = "frozen"


@pytest.mark.parametrize("mode", ["fixed", "synchronised"])
def test_no_molecules_is_an_empty_batch_with_zero_gradients(mode):
    encoder = MoleculeEncoder(layers=2, width=16)
    encoder.batch_norm_mode = mode
    output = encoder(collate_graphs([]))
    assert output.shape == (0, 16)
    output.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in encoder.parameters())
    assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())
    assert encoder.batch_norms[0].num_batches_tracked == 0


def test_gradients_reach_every_parameter(graphs):
    encoder = MoleculeEncoder(layers=3, width=32)
    output = encoder(collate_graphs(graphs))
    (output * torch.randn_like(output)).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())


def test_dropout_only_in_training(graphs):
    encoder = trained(graphs=graphs, layers=2, width=32, dropout=0.5)
    batch = collate_graphs(graphs)
    assert torch.equal(encoder(batch), encoder(batch))
    encoder.train().batch_norm_mode = "fixed"
    assert not torch.equal(encoder(batch), encoder(batch))


def test_batch_norm_equals_torchs():
    ours, torchs = SynchronisedBatchNorm(8).double(), torch.nn.BatchNorm1d(8).double()
    for _ in range(3):
        rows = torch.randn(50, 8, dtype=torch.float64) * 3 + 5
        weights = torch.randn(50, 8, dtype=torch.float64)
        results = []
        for module in (ours, torchs):
            given = rows.clone().requires_grad_()
            output = module(given)
            (output * weights).sum().backward()
            results.append((output, given.grad))
        for left, right in zip(*results):
            assert torch.allclose(left, right, atol=1e-12)
    for left, right in zip(ours.state_dict().values(), torchs.state_dict().values()):
        assert torch.allclose(left, right)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert torch.allclose(ours.eval()(rows), torchs.eval()(rows))


def _train_part(graphs, weights, parts):
    """Two forwards in training on this rank's molecules, in double: output, all ranks' gradient, final buffers."""
    if parts is not None:
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
        begin, end = parts[dist.get_rank()]
        rows = np.cumsum([0, *(len(graph.atoms) for graph in graphs)])
        weights, graphs = weights[rows[begin] : rows[end]], graphs[begin:end]
    torch.manual_seed(0)
    encoder = MoleculeEncoder("gin", layers=3, width=32).double().train()
    encoder(collate_graphs(graphs))
    output = encoder(collate_graphs(graphs))
    (output * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    if parts is not None:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
    return (
        output.detach().numpy(),
        {n: g.numpy() for n, g in gradients.items()},
        {name: buffer.numpy() for name, buffer in encoder.named_buffers()},
    )


@pytest.mark.parametrize("parts", [[(0, 5), (5, 12)], [(0, 12), (12, 12)], [(0, 0), (0, 12)]])
def test_two_ranks_equal_one(graphs, parts):
    """Statistics, outputs and gradients are those of one rank with all molecules, however they are dealt."""
    graphs = graphs[10:22]
    weights = torch.randn(
        sum(len(graph.atoms) for graph in graphs), 32, generator=torch.Generator().manual_seed(1)
    ).double()
    alone = _train_part(graphs, weights, None)
    ranks = run_ranks(2, _train_part, graphs, weights, parts)
    assert np.abs(np.concatenate([rank[0] for rank in ranks]) - alone[0]).max() <= 1e-9
    for _, gradients, buffers in ranks:
        for name, gradient in alone[1].items():
            assert np.abs(gradients[name] - gradient).max() <= 1e-9 * max(1.0, np.abs(gradient).max()), name
        for name, buffer in alone[2].items():
            assert np.abs(buffers[name] - buffer).max() <= 1e-12 * max(1.0, np.abs(buffer).max()), name
    first, second = (rank[2] for rank in ranks)
    assert all(np.array_equal(first[name], second[name]) for name in first)
