"""Tokenizer files of a model directory, and a sentencepiece model as a Hugging Face tokenizer that gives the same ids.

`transformers` 5 loading a bare Llama `tokenizer.model` does not: it ignores the scores of pieces such as "▁▁" and drops
leading spaces. Here the merges are rebuilt from the piece scores, in the order in which sentencepiece applies them, and
saved as `tokenizer.json` for `PreTrainedTokenizerFast`, which takes the file as it is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from job.errors import InputError
from job.files import read_json, write_json, write_text

# What sentencepiece's identity normalisation with a dummy prefix is, in tokenizer.json.
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
_ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
_BPE = sentencepiece_model_pb2.TrainerSpec.BPE  # type: ignore[attr-defined]
_PIECE = _ModelProto.SentencePiece

# Texts on which converted and original tokenizers used to differ.
PROBES = (
    "Aspirin inhibits cyclooxygenase.",
    "two  spaces   three",
    "  leading and trailing  ",
    "TNF-α 5 μM, 10⁵ ≥ β₂\nline\n\n\tindented\r\nwindows",
    "日本語 👩‍🔬🧬 é e\u0301",
    "x\u2028line\u2029para\u00a0\u200b\ufeff\x00",
    "▁literal▁▁ <0x0A>",
    " ",
    "\n",
)


def find_file(path: Path) -> Path:
    """The file that defines the ids of the tokenizer at `path`; raises `InputError` where there is none."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(
            f"tokenizer {path} does not exist; give a Hugging Face directory or a sentencepiece .model file"
        )
    model, converted = path / "tokenizer.model", path / "tokenizer.json"
    # Llama-3 ships a tiktoken file under the name tokenizer.model: only a real sentencepiece file counts.
    if model.is_file() and (not converted.is_file() or is_sentencepiece(model)):
        return model
    if converted.is_file():
        return converted
    raise InputError(f"{path} has neither tokenizer.model nor tokenizer.json; give the directory of a whole model")


def read_settings(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json` over `special_tokens_map.json` of a model directory, as far as they exist."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            settings |= {key: value for key, value in read_json(directory / name).items() if value is not None}
    return settings


def read_model(file: Path) -> Any:
    """The parsed sentencepiece model (a protobuf message); raises `InputError` where the file is something else."""
    message = _ModelProto()
    try:
        message.ParseFromString(Path(file).read_bytes())
    except DecodeError:
        raise InputError(f"{file} is not a sentencepiece model") from None
    except OSError as error:
        raise InputError(f"cannot read tokenizer {file}: {error.strerror}") from None
    if not message.pieces:
        raise InputError(f"{file} is not a sentencepiece model: it has no pieces")
    return message


def is_sentencepiece(file: Path) -> bool:
    """Whether the file parses as a sentencepiece model."""
    try:
        read_model(file)
    except InputError:
        return False
    return True


def is_plain_bpe(model: Any) -> bool:
    """Whether the model is a BPE that takes text as it is: no normalisation but the space put in front."""
    spec = model.normalizer_spec
    return (
        model.trainer_spec.model_type == _BPE
        and not spec.precompiled_charsmap
        and not spec.normalization_rule_tsv
        and spec.add_dummy_prefix
        and spec.escape_whitespaces
        and not spec.remove_extra_whitespaces
        and not model.trainer_spec.treat_whitespace_as_suffix
    )


def convert(file: Path) -> Tokenizer:
    """A sentencepiece BPE as a `tokenizers.Tokenizer` with equal ids; BOS is put in front where the model has one.

    Raises `InputError` for a model that is no plain BPE.
    """
    model = read_model(file)
    if not is_plain_bpe(model):
        raise InputError(
            f"{file} is not a plain sentencepiece BPE (identity normalisation, space in front), which is all that can "
            "be converted exactly; give a directory with a tokenizer.json"
        )
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(model, vocabulary),
            unk_token=next(piece.piece for piece in model.pieces if piece.type == _PIECE.UNKNOWN),
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [piece.piece for piece in model.pieces if piece.type in (_PIECE.UNKNOWN, _PIECE.CONTROL)]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    bos = _special_names(file).get("bos_token")
    if bos:
        ids = [(bos, vocabulary[bos])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=ids
        )
    return tokenizer


def _merges(model: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to split a piece into two pieces, best piece score first: the order sentencepiece merges in."""
    merges = []
    for piece in model.pieces:
        if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN, _PIECE.BYTE):
            continue
        text = piece.piece
        splits = [(text[:at], text[at:]) for at in range(1, len(text))]
        splits = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        splits.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(piece.score, pair) for pair in splits]
    merges.sort(key=lambda merge: -merge[0])  # stable: equal scores stay in vocabulary order
    return [pair for _, pair in merges]


def _special_names(file: Path) -> dict[str, str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    ids["pad_token"] = processor.pad_id()
    return {name: processor.id_to_piece(index) for name, index in ids.items() if index >= 0}


def write_hf_tokenizer(source: Path, directory: Path) -> None:
    """Write the tokenizer files of a Hugging Face model directory, such that `AutoTokenizer` gives the shards' ids.

    `source` is a Hugging Face directory or a sentencepiece `.model`. Files of a directory whose `AutoTokenizer`
    already agrees with its own `tokenizer.model` (or that has only a `tokenizer.json`) are copied; anything else is
    converted. BOS comes first as in the shards; EOS, which ends a document, is not added to a prompt.

    Raises `InputError` where nothing that can be converted is found.
    """
    source, directory = Path(source), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    file = find_file(source)
    folder = source if source.is_dir() else None
    kept = read_settings(folder) if folder is not None else {}
    has_json = folder is not None and (folder / "tokenizer.json").is_file()
    if folder is not None and has_json and (file.suffix == ".json" or _agree(folder, _probe_ids(file, kept))):
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", *_COMPANIONS):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, directory / name)
        return
    if file.suffix == ".json":  # a bare tokenizer.json
        shutil.copyfile(file, directory / "tokenizer.json")
        return
    tokenizer = convert(file)
    special = _special_names(file)
    with_bos = "bos_token" in special and kept.get("add_bos_token", True)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": with_bos,
        "add_eos_token": False,
        **special,
    }
    if not with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    if folder is not None:
        settings |= {key: kept[key] for key in ("chat_template", "model_max_length", "pad_token") if key in kept}
        for name in _COMPANIONS:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, directory / name)
    write_text(directory / "tokenizer.json", tokenizer.to_str(pretty=False))
    write_json(directory / "tokenizer_config.json", settings)
    if file.resolve() != (directory / "tokenizer.model").resolve():
        shutil.copyfile(file, directory / "tokenizer.model")
    if not _agree(directory, _probe_ids(file, kept)):
        raise InputError(f"{file} could not be converted: its Hugging Face form gives other ids than sentencepiece")


_COMPANIONS = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def _probe_ids(file: Path, settings: dict[str, Any]) -> list[list[int]]:
    """What sentencepiece itself makes of `PROBES`, BOS in front where the model has one and its settings use it."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    with_bos = processor.bos_id() >= 0 and settings.get("add_bos_token", True)
    before = [processor.bos_id()] if with_bos else []
    return [before + processor.encode(text) for text in PROBES]


def _agree(directory: Path, expected: list[list[int]]) -> bool:
    """Whether `AutoTokenizer` of a directory gives, on texts that tell conversions apart, the ids expected."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError):
        return False
    return [tokenizer(text)["input_ids"] for text in PROBES] == expected


def vocabulary_size(directory: Path) -> int | None:
    """One more than the largest id that the tokenizer files of a directory give; None where there are none.

    Counts what is in any of the files, tokens added later included. Raises `InputError` for a file that is damaged.
    """
    largest = -1
    body, model, added = (directory / name for name in ("tokenizer.json", "tokenizer.model", "added_tokens.json"))
    if body.is_file():
        parsed = read_json(body)
        vocabulary = parsed.get("model", {}).get("vocab", {})
        largest = max(vocabulary.values(), default=-1) if isinstance(vocabulary, dict) else len(vocabulary) - 1
        largest = max([largest, *(token["id"] for token in parsed.get("added_tokens", ()))])
    if model.is_file() and (not body.is_file() or is_sentencepiece(model)):
        largest = max(largest, len(read_model(model).pieces) - 1)
    if added.is_file():
        largest = max([largest, *read_json(added).values()])
    return largest + 1 if largest >= 0 else None
