"""The checkpoint index is rebuilt from plain records only."""

import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from job.errors import InputError
from parallel.safe_reader import SafeMetadataReader, read_index


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "step": 7}
    dcp.save(tensors, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    return tmp_path / "checkpoint", tensors


def test_reads_what_torch_wrote(checkpoint):
    directory, tensors = checkpoint
    target = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    dcp.load(target, storage_reader=SafeMetadataReader(directory), no_dist=True)
    assert torch.equal(target["a"], tensors["a"])
    assert torch.equal(target["b"], tensors["b"])
    assert (
        read_index(directory).state_dict_metadata == dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
    )


class Attack:
    def __reduce__(self):
        return os.mkdir, (os.environ["ATTACK"],)


def test_refuses_code(checkpoint, tmp_path, monkeypatch):
    directory, _ = checkpoint
    monkeypatch.setenv("ATTACK", str(tmp_path / "broken-into"))
    (directory / ".metadata").write_bytes(pickle.dumps(Metadata({}, planner_data=Attack())))
    with pytest.raises(InputError, match=r"\.metadata.*posix\.mkdir"):
        read_index(directory)
    assert not (tmp_path / "broken-into").exists()
    dcp.FileSystemReader(directory).read_metadata()  # the attack is a real one: torch's own reader falls for it
    assert (tmp_path / "broken-into").exists()


def test_names_a_damaged_or_absent_index(checkpoint):
    directory, _ = checkpoint
    whole = (directory / ".metadata").read_bytes()
    (directory / ".metadata").write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"\.metadata is not the index"):
        read_index(directory)
    (directory / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="holds a dict"):
        read_index(directory)
    (directory / ".metadata").unlink()
    with pytest.raises(InputError, match="does not exist"):
        read_index(directory)
