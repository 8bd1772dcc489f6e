"""Import and export: bit-equal round trips, what is refused and how, and what a half-finished conversion leaves."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from job import manifest
from job.errors import InputError
from job.files import sha256_file
from parallel.convert import export_main, export_model, import_main, import_model
from parallel.model_card import read_statement
from parallel.prefetch import prefetched
from parallel.shape import read_shape
from parallel.weights import weights
from tests.conftest import REPOSITORY
from tests.parallel.models import MODELS, reference, save_model


def stored_tensors(directory):
    """Every tensor of a model directory by name, whatever the number of files."""
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model directory in three files with an index, which no test changes."""
    directory = tmp_path_factory.mktemp("llama") / "source"
    save_model("llama-gqa", directory, max_shard_size="70KB")
    assert len(list(directory.glob("*.safetensors"))) >= 3
    return directory


@pytest.fixture(scope="module")
def imported(llama, tmp_path_factory):
    """The same, imported, which no test changes."""
    directory = tmp_path_factory.mktemp("imported") / "checkpoint"
    import_model(llama, directory)
    return directory


def copy_of(directory, tmp_path):
    """A copy to damage."""
    target = tmp_path / "copy"
    subprocess.run(["cp", "-r", directory, target], check=True)
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_equal(name, dtype, tmp_path):
    model = save_model(name, tmp_path / "source", dtype, max_shard_size="70KB")
    import_model(tmp_path / "source", tmp_path / "checkpoint", tensor=2, pipeline=2)
    export_model(tmp_path / "checkpoint", tmp_path / "exported", max_shard_gb=5e-5)
    assert len(list((tmp_path / "exported").glob("model-*-of-*.safetensors"))) >= 2
    assert_same_tensors(stored_tensors(tmp_path / "exported"), stored_tensors(tmp_path / "source"))
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / which) for which in ("source", "exported"))
    assert after.dtype == dtype and type(after) is type(model)
    assert torch.equal(reference(after)[1], reference(before)[1])


def test_mixed_dtypes_are_kept_tensor_by_tensor(tmp_path):
    save_model("llama-gqa", tmp_path / "source", torch.bfloat16)
    [file] = (tmp_path / "source").glob("*.safetensors")
    tensors = load_file(file)
    # an odd number of bfloat16 rows before float32 norms: every tensor must still start aligned
    tensors |= {name: tensor.float() for name, tensor in tensors.items() if "norm" in name}
    save_file(tensors, file, {"format": "pt"})
    import_model(tmp_path / "source", tmp_path / "checkpoint")
    export_model(tmp_path / "checkpoint", tmp_path / "exported")
    assert_same_tensors(stored_tensors(tmp_path / "exported"), tensors)
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_export_in_another_dtype(dtype, imported, llama, tmp_path):
    export_main([str(imported), str(tmp_path / "exported"), "--dtype", str(dtype).removeprefix("torch.")])
    expected = {name: tensor.to(dtype) for name, tensor in stored_tensors(llama).items()}
    assert_same_tensors(stored_tensors(tmp_path / "exported"), expected)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported").dtype == dtype


def test_a_tied_head_that_is_stored_too_must_be_equal(tmp_path):
    save_model("llama3-tied", tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # stored by old checkpoints
    save_file(tensors, file, {"format": "pt"})
    import_model(tmp_path / "source", tmp_path / "checkpoint")
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match="tie_word_embeddings"):
        import_model(tmp_path / "source", tmp_path / "other")


def test_manifests_name_every_file_and_chain_back_to_the_source(imported, llama, tmp_path):
    export_model(imported, tmp_path / "exported")
    for directory, stage in ((imported, "checkpoint"), (tmp_path / "exported", "export")):
        files = manifest.read(directory, stage)["files"]
        present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
        assert set(files) == present - {"manifest.json"}
        for name, entry in files.items():
            file = directory / name
            assert entry == {"sha256": sha256_file(file), "bytes": file.stat().st_size}, name
    exported = manifest.read(tmp_path / "exported", "export")
    assert exported["inputs"] == [manifest.reference(imported)]
    import_model(tmp_path / "exported", tmp_path / "again")
    stages = [entry["stage"] for entry in manifest.chain(tmp_path / "again")]
    assert stages == ["checkpoint", "export", "checkpoint"]
    card = (tmp_path / "exported" / "README.md").read_text()
    assert exported["inputs"][0]["manifest_sha256"][:16] in card and str(llama.parent) not in card


def test_card_names_base_model_licence_and_language(llama, tmp_path):
    source = shutil.copytree(llama, tmp_path / "Some-Llama")
    (source / "README.md").write_text("---\nlicense: llama2\nlanguage:\n- de\n---\n# A model\n")
    import_model(source, tmp_path / "imported")
    export_model(tmp_path / "imported", tmp_path / "exported")
    metadata = ModelCard.load(tmp_path / "exported" / "README.md").data
    assert (metadata.license, metadata.language, metadata.base_model) == ("llama2", ["de"], "Some-Llama")
    import_model(tmp_path / "exported", tmp_path / "again")  # a model of ours as the base of another
    export_model(tmp_path / "again", tmp_path / "twice")
    metadata = ModelCard.load(tmp_path / "twice" / "README.md").data
    assert (metadata.license, metadata.base_model) == ("llama2", "Some-Llama")
    (source / "README.md").write_text("---\nlicense: [llama2\n---\n")
    assert read_statement(source) == {}


def test_tensor_pieces_are_what_a_rank_reads(llama, tmp_path):
    """Each rank's part of every weight is made of whole pieces, so that loading reads nothing twice."""
    from parallel.safe_reader import read_index

    import_model(llama, tmp_path / "checkpoint", tensor=2)
    index = read_index(tmp_path / "checkpoint").state_dict_metadata
    for weight in weights(read_shape(llama)):
        chunks = index[weight.megatron].chunks
        expected = 1 if weight.tensor_dimension is None else 4 if weight.kind == "gate_up" else 2
        assert len(chunks) == expected, weight.megatron


# What users get wrong, each refused in one sentence that names it.


def drop_file(source):
    file = sorted(source.glob("model-*.safetensors"))[1]
    file.unlink()
    return rf"index\.json names {file.name} \(\d+ tensors\), which is missing"


def cut_file(source):
    file = sorted(source.glob("model-*.safetensors"))[1]
    os.truncate(file, file.stat().st_size - 100)
    return rf"{file.name} is not a whole safetensors file"


def drop_weight(source):
    index = source / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    name = "model.layers.2.mlp.up_proj.weight"
    file = source / body["weight_map"].pop(name)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    index.write_text(json.dumps(body))
    return rf"lacks {name}, which its config\.json asks for"


def move_weight(source):
    index = source / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    files = sorted(set(body["weight_map"].values()))
    body["weight_map"]["model.norm.weight"] = next(f for f in files if f != body["weight_map"]["model.norm.weight"])
    index.write_text(json.dumps(body))
    return r"says that model\.norm\.weight is in .*, but it is not"


def escape_directory(source):
    index = source / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    body["weight_map"]["model.norm.weight"] = "../../etc/model.safetensors"
    index.write_text(json.dumps(body))
    return "outside its directory"


def edit_config(source, **changes):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))


def add_bias(source):
    edit_config(source, num_hidden_layers=4)
    return r"holds model\.layers\.4\..* and 6 more, which a llama model does not have"


def other_shape(source):
    edit_config(source, intermediate_size=64)
    return r"model\.layers\.0\.mlp\.gate_proj\.weight has shape \[48, 32\], but config\.json makes it \[64, 32\]"


def other_tokenizer(source):
    vocabulary = {f"token{number}": number for number in range(201)}
    (source / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return r"has 201 ids, but config\.json's vocab_size is 200"


def added_token(source):
    vocabulary = {f"token{number}": number for number in range(200)}
    body = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 200, "content": "<pad>"}]}
    (source / "tokenizer.json").write_text(json.dumps(body))
    return r"has 201 ids, but config\.json's vocab_size is 200"


def only_pickles(source):
    for file in source.glob("model*"):
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    return r"has neither model\.safetensors nor .*pytorch_model\.bin is a pickle"


def quantised(source):
    file = sorted(source.glob("model-*.safetensors"))[0]
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return "is stored as I8; supported are F64, F32, F16, BF16"


def no_config(source):
    (source / "config.json").unlink()
    return r"config\.json does not exist"


def other_family(source):
    edit_config(source, model_type="gpt2")
    return r"model_type 'gpt2' is not supported; supported are llama, mistral, qwen2"


@pytest.mark.parametrize(
    "damage",
    [
        drop_file,
        cut_file,
        drop_weight,
        move_weight,
        escape_directory,
        add_bias,
        other_shape,
        other_tokenizer,
        added_token,
        only_pickles,
        quantised,
        no_config,
        other_family,
    ],
    ids=lambda damage: damage.__name__,
)
def test_import_refuses(damage, llama, tmp_path):
    source = copy_of(llama, tmp_path)
    with pytest.raises(InputError, match=damage(source)):
        import_model(source, tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tensor", "3"], r"parallel\.tensor 3 does not divide the model's 4 attention heads"),
        (["--tensor", "4"], r"parallel\.tensor 4 does not divide the model's 2 key/value heads"),
        (["--tensor", "0"], r"parallel\.tensor must be at least 1, not 0"),
        (["--pipeline", "6"], r"6 stages, but the model has only 5 layers"),
    ],
)
def test_import_refuses_a_layout_by_its_number(options, message, llama, tmp_path):
    with pytest.raises(InputError, match=message):
        import_main([str(llama), str(tmp_path / "checkpoint"), *options])
    assert not list(tmp_path.iterdir())


def flip_bit(checkpoint):
    file = checkpoint / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return r"__0_0\.distcp does not match its SHA-256 in the manifest: it is damaged"


def cut_data(checkpoint):
    os.truncate(checkpoint / "__0_0.distcp", 1000)
    return r"__0_0\.distcp has 1000 bytes, its manifest says \d+: it is cut"


def drop_data(checkpoint):
    (checkpoint / "__0_0.distcp").unlink()
    return r"__0_0\.distcp is missing"


def change_config(checkpoint):
    edit_config(checkpoint / "hf", num_hidden_layers=4)
    return r"hf/config\.json (has|does not match)"


def damage_index(checkpoint):
    os.truncate(checkpoint / ".metadata", 100)
    return r"\.metadata has 100 bytes"


def drop_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()
    return r"manifest\.json does not exist: .* is not the finished output of 'checkpoint'"


@pytest.mark.parametrize(
    "damage",
    [flip_bit, cut_data, drop_data, change_config, damage_index, drop_manifest],
    ids=lambda damage: damage.__name__,
)
def test_export_refuses(damage, imported, tmp_path):
    checkpoint = copy_of(imported, tmp_path)
    with pytest.raises(InputError, match=damage(checkpoint)):
        export_model(checkpoint, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_export_of_a_run_directory_takes_the_latest(imported, llama, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InputError, match="does not exist"):
        export_model(run, tmp_path / "exported")
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="no complete checkpoint yet"):
        export_model(run, tmp_path / "exported")
    (run / "checkpoints" / "step-00000020").symlink_to(imported)
    (run / "latest").write_text("step-00000020\n")
    export_model(run, tmp_path / "exported")
    assert_same_tensors(stored_tensors(tmp_path / "exported"), stored_tensors(llama))


def test_nothing_is_overwritten_and_leftovers_are_cleared(llama, imported, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        import_model(llama, imported)
    leftover = tmp_path / ".checkpoint.writing"  # what a killed import leaves
    (leftover / "hf").mkdir(parents=True)
    (leftover / "__0_7.distcp").write_bytes(b"half")
    descriptor = os.open(leftover, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="is being written by another process"):
        import_model(llama, tmp_path / "checkpoint")
    assert (leftover / "__0_7.distcp").exists()
    os.close(descriptor)
    import_model(llama, tmp_path / "checkpoint")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}
    assert not (tmp_path / "checkpoint" / "__0_7.distcp").exists()


def run_python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, **options
    )


def test_help_teaches_without_torch():
    code = """
import sys
from parallel.__main__ import main
for words in ([], ["--help"], ["import", "--help"], ["export", "--help"]):
    sys.argv = ["parallel", *words]
    try:
        main()
    except SystemExit as leaving:
        assert leaving.code == 0
assert not {"torch", "transformers", "megatron"} & set(sys.modules), "a heavy import"
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    for word in ("HF_DIR", "CKPT_DIR", "--tensor T", "--pipeline P", "--max-shard-gb", "--dtype", "example:"):
        assert word in result.stdout


def test_a_users_mistake_is_one_sentence_and_status_2(llama, tmp_path):
    source = copy_of(llama, tmp_path)
    drop_file(source)
    command = [sys.executable, "-m", "parallel", "import", str(source), str(tmp_path / "checkpoint")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_a_full_disk_is_said_so(llama, tmp_path):
    """A file size limit makes the write itself fail, as a full disk does."""
    code = """
import resource, signal, sys
from pathlib import Path
from job.errors import run_command
from parallel.convert import import_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
run_command(lambda: import_model(Path(sys.argv[1]), Path(sys.argv[2])))
"""
    result = run_python(code, llama, tmp_path / "checkpoint")
    assert result.returncode == 2, result.stderr
    *notes, error = result.stderr.splitlines()
    assert re.fullmatch(r"error: cannot write .*checkpoint: File too large; free space or .*", error)
    assert all("has no tokenizer" in note or re.fullmatch(r"import [\d.]+ MB", note) for note in notes)
    assert not list(tmp_path.iterdir())


MEMORY = """
import sys
from pathlib import Path
from parallel.convert import export_model, import_model
import torch, parallel.from_hugging_face, parallel.to_hugging_face

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

source, checkpoint, exported = map(Path, sys.argv[1:])
start = peak()
import_model(source, checkpoint, tensor=2)
after_import = peak()
export_model(checkpoint, exported)
print(after_import - start, peak() - start)
"""


def test_memory_holds_a_few_tensors_not_the_model(tmp_path):
    """Peak resident memory, mapped pages included, against the bound of 3 largest tensors + 500 MB; here far less."""
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2752,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=4096,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    pattern = torch.randn(1 << 20).bfloat16()
    tensors = {}
    for index, (name, value) in enumerate(model.state_dict().items()):
        repeats = -(-value.numel() // pattern.numel())
        tensors[name] = pattern.roll(index).repeat(repeats)[: value.numel()].reshape(value.shape).clone()
    (tmp_path / "source").mkdir()
    save_file(tensors, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    config.save_pretrained(tmp_path / "source")
    size = (tmp_path / "source" / "model.safetensors").stat().st_size
    assert size > 600e6
    result = run_python(MEMORY, tmp_path / "source", tmp_path / "checkpoint", tmp_path / "exported")
    assert result.returncode == 0, result.stderr
    largest = max(tensor.nbytes for tensor in tensors.values())
    for extra in map(int, result.stdout.split()[-2:]):
        assert extra <= 3 * largest + 100e6 < size / 4, f"{extra / 1e6:.0f} MB"
    # large enough that reading ahead into memory used again would show a race
    assert_same_tensors(stored_tensors(tmp_path / "exported"), tensors)


def test_reading_ahead_keeps_order_and_raises_at_the_item():
    def half(number):
        if number == 3:
            raise InputError("three")
        return number / 2

    seen = []
    with pytest.raises(InputError, match="three"):
        for item, result in prefetched(half, [5, 4, 3, 2]):
            seen.append((item, result))
    assert seen == [(5, 2.5), (4, 2.0)]
    assert list(prefetched(half, [])) == []
