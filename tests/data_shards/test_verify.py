"""Every kind of damage is found and named; nothing is found where nothing is wrong."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_shards import verify
from data_shards.shards import STAGE, ShardManifest, ShardWriter, blocks, index_path
from job import manifest
from tests.data_shards.shard_sets import build_abstracts, write_build


@pytest.fixture(scope="module")
def whole(real_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    build_abstracts(directory, real_data, count=200)
    return directory


@pytest.fixture
def build(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "build")


def damages(directory):
    return [damage for _, found in verify.verify(directory) for damage in found]


def flip(path, byte, bit=0x40):
    with open(path, "r+b") as handle:
        handle.seek(byte)
        value = handle.read(1)[0]
        handle.seek(byte)
        handle.write(bytes([value ^ bit]))


@pytest.mark.real
def test_a_sound_build_has_no_damage(whole):
    assert damages(whole) == []


@pytest.mark.real
def test_a_flipped_byte_anywhere_is_found_and_its_block_named(build):
    """Bytes all over one tar: tokens, lengths, records, checksums, headers, padding, the end."""
    tar = build / "train" / "shard-00001.tar"
    sound = tar.read_bytes()
    found_blocks = list(blocks(tar))
    generator = np.random.default_rng(0)
    for byte in [0, 200, 511, 600, len(sound) - 1, *generator.integers(0, len(sound), 60).tolist()]:
        flip(tar, byte)
        found = damages(build)
        assert found, f"the flipped byte {byte} went unnoticed"
        assert all(damage.file == tar for damage in found if damage.block), byte
        owner = [block.key for block in found_blocks if next(iter(block.members.values())).offset <= byte]
        end = list(found_blocks[-1].members.values())[-1]
        if byte < end.offset_data + end.size:
            named = [damage for damage in found if damage.block == owner[-1]]
            # A header that no longer is one ends the walk; then the byte is named instead of the block.
            broken_header = re.search(r"damaged at byte (\d+)", str(found[0]))
            assert named or (broken_header and 0 <= byte - int(broken_header[1]) < 512), (byte, found)
            assert any(damage.byte is None or damage.byte <= byte for damage in named) or broken_header
        tar.write_bytes(sound)
    assert damages(build) == []


@pytest.mark.real
def test_truncated_deleted_and_stray_files(build):
    tar = build / "train" / "shard-00000.tar"
    size = tar.stat().st_size
    with open(tar, "r+b") as handle:
        handle.truncate(size // 2)
    (build / "train" / "shard-00001.tar").unlink()
    index_path(build / "train" / "shard-00002.tar").unlink()
    shutil.copyfile(build / "train" / "shard-00003.tar", build / "train" / "shard-00009.tar")
    text = "\n".join(map(str, damages(build)))
    assert f"shard-00000.tar, byte {size // 2}: has {size // 2} bytes instead of {size}" in text
    assert f"ends at byte {size // 2}, inside its member" in text
    assert "shard-00001.tar: is missing" in text
    assert "shard-00002.index.npy: is missing" in text
    assert "shard-00009.tar: is not in the manifest" in text


@pytest.mark.real
def test_an_index_with_a_valid_checksum_but_wrong_offset_is_found(build):
    """Someone rebuilt index and manifest wrongly: only comparing with the tar shows it."""
    file = index_path(build / "train" / "shard-00000.tar")
    index = np.load(file)
    index["offset"][17] += 2
    index["length"][17] -= 1
    np.save(file, index)
    described = manifest.read(build, STAGE)
    described["splits"]["train"][0]["index_sha256"] = verify._sha256(file.read_bytes())
    manifest.write(build, STAGE, {}, [], {key: described[key] for key in ("tokenizer", "dtype", "splits")})
    found = damages(build)
    assert len(found) == 1
    assert found[0].file == file
    assert "document 17 is said to lie at" in found[0].what


@pytest.mark.real
def test_wrong_counts_in_the_manifest_are_found(build):
    described = manifest.read(build, STAGE)
    described["splits"]["train"][1]["tokens"] += 1
    described["splits"]["validation"][0]["blocks"] += 1
    manifest.write(build, STAGE, {}, [], {key: described[key] for key in ("tokenizer", "dtype", "splits")})
    text = "\n".join(map(str, damages(build)))
    assert re.search(r"shard-00001\.tar: holds \d+ tokens, but the manifest says", text)
    assert re.search(r"shard-00000\.tar: holds \d+ blocks, but the manifest says", text)


def test_ids_beyond_the_vocabulary_and_missing_bos_or_eos_are_found(tmp_path):
    good = np.array([1, 5, 6, 2], np.uint16)
    bad = [np.array(ids, np.uint16) for ids in ([1, 32000, 2], [5, 6, 2], [1, 5, 6])]
    write_build(tmp_path, {"train": [good, *bad, good], "validation": []})
    text = "\n".join(map(str, damages(tmp_path)))
    start = 512 + 128  # tar header, .npy header
    assert f"byte {start + 2 * 5}: id 32000 is not below the vocabulary size" in text
    assert f"byte {start + 2 * 7}: id 5 stands where BOS should" in text
    assert f"byte {start + 2 * 12}: id 6 stands where EOS should" in text
    assert len(damages(tmp_path)) == 3


def test_loss_masks_are_verified_too(tmp_path):
    (tmp_path / "train").mkdir()
    with ShardWriter(tmp_path / "train" / "s.tar", np.uint16, 8) as writer:
        for number in range(5):
            writer.add(np.array([1, 7, 8, 2], np.uint16), {"id": str(number)}, np.array([0, 1, 1, 0], bool))
    described = ShardManifest.from_json(
        {
            "tokenizer": {"path": "t", "sha256": "s", "vocab_size": 10, "bos_id": 1, "eos_id": 2},
            "dtype": "uint16",
            "splits": {"train": [writer.info.to_json()]},
        }
    )
    manifest.write(tmp_path, STAGE, {}, [], described.to_json())
    assert damages(tmp_path) == []
    mask = list(blocks(tmp_path / "train" / "s.tar"))[1].members["loss_mask.npy"]
    flip(tmp_path / "train" / "s.tar", mask.offset_data + mask.size - 1)
    assert [damage.member for damage in damages(tmp_path)] == ["loss_mask.npy", "loss_mask.npy"]


@pytest.mark.real
def test_the_command_ends_in_status_1_on_damage_and_0_without(build):
    def run():
        words = [sys.executable, "-m", "data_shards", "verify", str(build)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60)

    sound = run()
    assert sound.returncode == 0
    assert "all checksums, offsets and counts agree" in sound.stdout
    flip(build / "train" / "shard-00000.tar", 5000)
    damaged = run()
    assert damaged.returncode == 1
    assert "train/shard-00000.tar: damaged" in damaged.stdout
    assert "shard-00000.tar, block 000000, tokens.npy, byte 512" in damaged.stdout
    (build / "manifest.json").unlink()
    nothing = run()
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: ")
