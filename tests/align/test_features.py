"""Encoder outputs on disk: equal to running the encoder, shared by ranks, whole after a kill, refused for another."""

import datetime
import gzip
import json
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from align import features
from align.esm import collate_proteins, create_protein_encoder
from align.features import FeatureCache, build_cache, encoder_checksum
from align.gnn import MoleculeEncoder, collate_graphs
from align.molecules import featurise
from align.proteins import tokenise
from job.errors import InputError
from tests.align.molecules import chebi20
from tests.ranks.fork import RankFailed, run_ranks

MAX_ATOMS, MAX_RESIDUES = 256, 200


def molecule_encoder(seed=0):
    torch.manual_seed(seed)
    return MoleculeEncoder("gin", layers=2, width=16).eval()


def protein_encoder(seed=0):
    return create_protein_encoder(2, 32, 4, seed).eval()


@pytest.fixture(scope="module")
def molecules(real_data):
    return chebi20(real_data)[:120]


@pytest.fixture(scope="module")
def proteins(real_data):
    with gzip.open(real_data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt") as lines:
        return [json.loads(next(lines))["sequence"] for _ in range(30)]


@torch.no_grad()
def encode(encoder, structure):
    if isinstance(encoder, MoleculeEncoder):
        return encoder(collate_graphs([featurise(structure, MAX_ATOMS)]))
    return encoder(collate_proteins([tokenise(structure, MAX_RESIDUES)]))


def test_molecules_equal_the_encoder(molecules, tmp_path):
    encoder = molecule_encoder().train()
    encoder.batch_norm_mode = "synchronised"
    before = encoder_checksum(encoder)
    cache = build_cache(tmp_path, encoder, [*molecules, *molecules[:5]], MAX_ATOMS, part_bytes=20_000)
    assert encoder.training and encoder_checksum(encoder) == before, "building changed the encoder"
    assert len(cache) == len(set(molecules)) and cache.width == 16
    assert len(list(tmp_path.glob("part-*.index.npy"))) > 5
    for smiles in molecules:
        found = cache.lookup(smiles)
        assert found.dtype == np.float32 and smiles in cache
        assert np.abs(found - encode(encoder.eval(), smiles).numpy()).max() <= 1e-5
    cache.verify()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_proteins_equal_the_encoder(proteins, tmp_path, dtype):
    encoder = protein_encoder().to(dtype)
    cache = build_cache(tmp_path, encoder, proteins, MAX_RESIDUES)
    assert any(len(sequence) > MAX_RESIDUES for sequence in proteins)
    for sequence in proteins:
        found = cache.lookup(sequence)
        assert found.dtype == (np.uint16 if dtype == torch.bfloat16 else np.float32)
        values = torch.from_numpy(found.copy())
        values = values.view(torch.bfloat16) if dtype == torch.bfloat16 else values
        expected = encode(encoder, sequence)
        assert values.shape == expected.shape == (min(len(sequence), MAX_RESIDUES) + 2, 32)
        assert (values.float() - expected.float()).abs().max() <= (1e-5 if dtype == torch.float32 else 0.05)


def test_only_new_structures_are_encoded(molecules, tmp_path, monkeypatch):
    encoder = molecule_encoder()
    build_cache(tmp_path, encoder, molecules[:50], MAX_ATOMS)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    encoded = []
    run = features._encode
    monkeypatch.setattr(features, "_encode", lambda *arguments: encoded.extend(arguments[1]) or run(*arguments))
    build_cache(tmp_path, encoder, molecules[:50], MAX_ATOMS)
    assert encoded == []
    cache = build_cache(tmp_path, encoder, molecules[40:60], MAX_ATOMS)
    assert sorted(encoded) == sorted(set(molecules[50:60])) and len(cache) == len(set(molecules[:60]))
    assert all(path.stat().st_mtime_ns == then for path, then in files.items())
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).lookup(molecules[0]), cache.lookup(molecules[0]))


def test_what_cannot_be_read_is_left_out(molecules, tmp_path):
    large = "C" * (MAX_ATOMS + 1)
    cache = build_cache(tmp_path, molecule_encoder(), [molecules[0], large, "not a molecule"], MAX_ATOMS)
    assert len(cache) == 1
    for smiles in (large, "not a molecule", molecules[1]):
        assert smiles not in cache
        with pytest.raises(InputError, match="lacks the features of"):
            cache.lookup(smiles)


def test_another_encoder_or_limit_is_refused(molecules, tmp_path):
    encoder = molecule_encoder()
    build_cache(tmp_path, encoder, molecules[:10], MAX_ATOMS)
    FeatureCache(tmp_path, encoder_checksum(encoder), MAX_ATOMS)
    other = molecule_encoder(seed=1)
    for refuse in (
        lambda: build_cache(tmp_path, other, molecules[:10], MAX_ATOMS),
        lambda: FeatureCache(tmp_path, encoder_checksum(other)),
    ):
        with pytest.raises(InputError, match="made with an encoder with other weights"):
            refuse()
    with pytest.raises(InputError, match=r"another limit \(256, not 300\)"):
        build_cache(tmp_path, encoder, molecules[:10], 300)
    with pytest.raises(InputError, match="another kind"):
        build_cache(tmp_path, protein_encoder(), ["MKTV"], MAX_ATOMS)


def test_checksum_sees_every_change():
    encoder = molecule_encoder()
    first = encoder_checksum(encoder)
    assert first == encoder_checksum(molecule_encoder()) == encoder_checksum(encoder.train())
    seen = {first}
    for name, tensor in encoder.state_dict().items():
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(encoder_checksum(encoder))
        assert len(seen) == 2 + list(encoder.state_dict()).index(name), name
    proteins = protein_encoder()
    assert encoder_checksum(proteins) != encoder_checksum(protein_encoder().bfloat16())
    other_heads = create_protein_encoder(2, 32, 2, 0)
    other_heads.esm.rotary_embeddings = proteins.esm.rotary_embeddings
    other_heads.load_state_dict(proteins.state_dict())
    assert encoder_checksum(other_heads) != encoder_checksum(proteins), "the number of heads is no weight, but counts"


def _build_as_rank(directory, molecules, part_bytes):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    cache = build_cache(directory, molecule_encoder(), molecules, MAX_ATOMS, part_bytes)
    return len(cache), [cache.lookup(smiles).copy() for smiles in molecules]


def test_two_ranks_share_the_work(molecules, tmp_path):
    ranks = run_ranks(2, _build_as_rank, tmp_path / "two", molecules, 50_000)
    alone = build_cache(tmp_path / "one", molecule_encoder(), molecules, MAX_ATOMS)
    for count, found in ranks:
        assert count == len(alone)
        for smiles, array in zip(molecules, found):
            assert np.abs(array - alone.lookup(smiles)).max() <= 1e-5
    indexes = [np.load(path) for path in (tmp_path / "two").glob("part-*.index.npy")]
    assert sum(map(len, indexes)) == len(alone), "a structure was encoded twice"


def _refused_as_rank(directory, molecules):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    try:
        build_cache(directory, molecule_encoder(seed=1), molecules, MAX_ATOMS)
    except InputError as error:
        return str(error), error.everywhere


def test_all_ranks_refuse_together(molecules, tmp_path):
    build_cache(tmp_path, molecule_encoder(), molecules[:5], MAX_ATOMS)
    for message, everywhere in run_ranks(2, _refused_as_rank, tmp_path, molecules, timeout=30):
        assert "other weights" in message and everywhere


def _build_slowly(directory, molecules):
    run = features._encode

    def slow(*arguments):
        time.sleep(0.05)
        return run(*arguments)

    features._encode = slow
    features._BATCH_POSITIONS = 100
    build_cache(directory, molecule_encoder(), molecules, MAX_ATOMS, part_bytes=20_000)


@pytest.mark.parametrize("parts", [0, 2])
def test_killed_half_way(molecules, tmp_path, parts):
    """What a kill leaves is no part, or a whole one; a restart keeps these and makes the rest."""
    directory = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(directory, molecules))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(directory.glob("part-*.index.npy"))) < parts or not list(directory.glob(".part-*.tmp")):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    half = FeatureCache(directory)
    half.verify()
    assert (len(half) > 0) == (parts > 0) and len(half) < len(set(molecules))
    kept = {path: path.stat().st_mtime_ns for path in directory.glob("part-*.index.npy")}
    (directory / "part-0000000000000000.features.npy").write_bytes(b"of a part without an index")
    cache = build_cache(directory, molecule_encoder(), molecules, MAX_ATOMS)
    assert len(cache) == len(set(molecules))
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert not list(directory.glob(".*.tmp")) and not (directory / "part-0000000000000000.features.npy").exists()
    encoder = molecule_encoder()
    for smiles in molecules:
        assert np.abs(cache.lookup(smiles) - encode(encoder, smiles).numpy()).max() <= 1e-5


def test_damage_is_named(molecules, tmp_path):
    cache = build_cache(tmp_path, molecule_encoder(), molecules[:20], MAX_ATOMS)
    [path] = tmp_path.glob("part-*.features.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-64])
    with pytest.raises(InputError, match=r"features\.npy"):
        FeatureCache(tmp_path).lookup(molecules[0])
    path.write_bytes(content[:-4] + b"\0\1\2\3")
    damaged = FeatureCache(tmp_path)
    failed = []
    for smiles in molecules[:20]:
        try:
            damaged.lookup(smiles)
        except InputError as error:
            failed.append(str(error))
    assert len(failed) == 1 and "is damaged; remove these files" in failed[0]
    with pytest.raises(InputError, match=r"features\.npy is damaged"):
        FeatureCache(tmp_path).verify()
    path.write_bytes(content)
    cache.verify()
    with pytest.raises(InputError, match="does not exist"):
        FeatureCache(tmp_path / "none")
    (tmp_path / "cache.json").write_text("[]")
    with pytest.raises(InputError, match="not of a cache"):
        FeatureCache(tmp_path)


def test_full_disk_and_second_builder_are_refused(molecules, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"the features need 0\.0 GB, but .* free"):
        build_cache(tmp_path, molecule_encoder(), molecules[:3], MAX_ATOMS)
    monkeypatch.undo()
    import fcntl

    with open(tmp_path / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="filled by another process"):
            build_cache(tmp_path, molecule_encoder(), molecules[:3], MAX_ATOMS)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        build_cache(blocked / "cache", molecule_encoder(), molecules[:3], MAX_ATOMS)


def _fails_on_rank_one(directory, molecules):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))

    def full(*arguments):
        raise InputError("cannot write the part: No space left on device")

    if dist.get_rank() == 1:
        features._write_part = full
    try:
        build_cache(directory, molecule_encoder(), molecules, MAX_ATOMS)
    except InputError as error:
        return str(error)


def test_one_ranks_failure_ends_all(molecules, tmp_path):
    try:
        messages = run_ranks(2, _fails_on_rank_one, tmp_path, molecules, timeout=30)
    except RankFailed as error:
        pytest.fail(f"a rank hung: {error}")
    assert all("No space left" in message for message in messages)
