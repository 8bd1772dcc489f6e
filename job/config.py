"""TOML files and command-line overrides become checked dataclasses.

One file describes a run. Every field can be overridden as `--section.key value`; unknown keys are refused by name with
the nearest known one; `--print_config` prints the resolved result, which loads back equal.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
import tempfile
import tomllib
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings
from jsonargparse.typing import register_type

from job.errors import InputError
from job.files import write_text

# Field help comes from the string under each field, where the reader of the dataclass finds it too.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

ConfigClass = TypeVar("ConfigClass")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of a verb's description: its examples are commands."""


class Count(int):
    """A whole number that may be written as people write large ones: `26e9`, `26_000_000_000`."""

    def __new__(cls, value: Any = 0) -> Count:
        """Accept an int, a whole float, or text of either; raises `ValueError` for anything else."""
        if isinstance(value, bool):
            raise ValueError(f"{value} is not a count")
        number = float(str(value).replace("_", "")) if isinstance(value, (str, float)) else value
        if number != int(number):
            raise ValueError(f"{value} is not a whole number")
        return super().__new__(cls, int(number))


register_type(Count, serializer=int, deserializer=Count)


def build_parser(config_class: type[Any], prog: str, description: str) -> ArgumentParser:
    """The parser behind a verb: a TOML file as the one positional argument, and every field as an option."""
    parser = ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=_HelpFormatter,
        parser_mode="toml",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.usage = f"{prog} CONFIG.toml [--section.key VALUE ...]"
    parser.add_argument("--config", action="config", help="the TOML file; the same as giving it first, by itself")
    parser.add_class_arguments(config_class, None)
    return parser


def parse(config_class: type[ConfigClass], arguments: Sequence[str], prog: str, description: str) -> ConfigClass:
    """Read `CONFIG.toml [--section.key VALUE ...]` into `config_class`.

    Raises `InputError` with file, key and the nearest known key where something does not fit. `--help` and
    `--print_config` print and leave by `SystemExit`.
    """
    parser = build_parser(config_class, prog, description)
    words = list(arguments)
    source = None
    if words and not words[0].startswith("-"):
        source = words[0]
        words = ["--config", source, *words[1:]]
    print_config = "--print_config" in words
    words = [word for word in words if word != "--print_config"]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.ExitStack() as files:
            # jsonargparse prints its usage besides raising
            if source is not None:
                content = _read_toml(Path(source))
                _check_sections(config_class, content, source)
                words[1] = files.enter_context(_without_replaced_lists(Path(source), content, words[2:]))
            namespace = parser.parse_args(words)
        built = parser.instantiate(namespace)
        config = config_class(**{name: built[name] for name in config_class.__dataclass_fields__})  # type: ignore[attr-defined]
    except ArgumentError as error:
        raise InputError(_explain(error, parser, source)) from None
    except (TypeError, ValueError) as error:  # a dataclass's own check (__post_init__)
        raise InputError(f"{source or prog}: {error}") from None
    if print_config:
        print(dump(config), end="")
        raise SystemExit(0)
    return config


def dump(config: Any) -> str:
    """The resolved config as TOML text that `parse` reads back equal (TOML has no null: None fields are left out)."""
    return tomli_w.dumps(_without_none(as_dict(config)))


def save(config: Any, path: Path) -> None:
    """Write the resolved config to `path`, atomically."""
    write_text(path, dump(config))


def as_dict(value: Any) -> Any:
    """The resolved config (or a part of it) as plain JSON-ready values, for manifests and W&B."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_dict(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: as_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_dict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, Count) else value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _check_sections(config_class: type[Any], content: dict[str, Any], source: str) -> None:
    """Refuse a section that does not exist, empty ones included, which jsonargparse would pass over."""
    known = list(config_class.__dataclass_fields__)
    for key in content:
        if key not in known:
            raise InputError(_unknown_key(key, known, source))


def _unknown_key(wrong: str, known: list[str], source: str | None) -> str:
    """One sentence: where, what, and the nearest key that exists."""
    nearest = difflib.get_close_matches(wrong, known, n=1, cutoff=0.4)
    advice = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return (f"{source}: " if source else "") + f"unknown key '{wrong}'{advice}"


@contextlib.contextmanager
def _without_replaced_lists(path: Path, content: dict[str, Any], words: Sequence[str]) -> Iterator[str]:
    """A file to parse in place of `path`: without the lists that the command line gives, which replace the file's.

    (jsonargparse would merge the two item by item, so that a new corpus inherits an old one's name and weight.)
    `content` is what `path` holds.
    """
    replaced = False
    for word in words:
        section: Any = content
        *parents, name = word.partition("=")[0].removeprefix("--").split(".")
        for parent in parents:
            section = section.get(parent, {}) if isinstance(section, dict) else {}
        if word.startswith("--") and isinstance(section, dict) and isinstance(section.get(name), list):
            del section[name]
            replaced = True
    if not replaced:
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as directory:
        reduced = Path(directory) / path.name
        reduced.write_text(tomli_w.dumps(content), encoding="utf-8")
        yield str(reduced)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config file {path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory; a TOML config file is needed") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None


def _known_keys(parser: ArgumentParser) -> list[str]:
    return [a.dest for a in parser._actions if "." in a.dest or a.dest not in ("help", "config", "print_config")]


def _explain(error: ArgumentError, parser: ArgumentParser, source: str | None) -> str:
    """One sentence from jsonargparse's message: where, what, and the nearest key that exists."""
    message = " ".join(str(error.message or error).split())
    wrong = None
    if match := re.search(r"Group '([^']*)' does not accept option '([^']*)'", message):
        wrong = f"{match[1]}.{match[2]}"
    elif (match := re.search(r"Option '([^']*)' is not accepted", message)) or (
        match := re.search(r"unrecognized arguments: --([\w.]+)", message)
    ):
        wrong = match[1]
    where = f"{source}: " if source else ""
    if wrong is None:
        told = where + message.replace('Parser key "', 'key "').replace("<class '", "").replace("'>", "")
        told = re.sub(r"(\ba )?typing\.Literal\[(.*?)\]", r"one of \2", told)
        if "Expected a list" in told:
            told += """; a list is written as JSON, such as '["a", "b"]' or '[{"path": "DIRECTORY"}]'"""
        elif "Expected a str" in told:
            told += "; text is written in quotes"
        return told
    return _unknown_key(wrong, _known_keys(parser), source)
