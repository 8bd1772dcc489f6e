"""TOML and command line into dataclasses: counts as people write them, mistakes by name, dumps that read back equal."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from job.config import Count, as_dict, dump, parse, save
from job.errors import InputError


@dataclasses.dataclass
class Source:
    """A source."""

    path: str
    """where it is"""
    weight: float | None = None
    """its share"""


@dataclasses.dataclass
class Section:
    """A section."""

    tokens: Count | None = None
    """how many tokens"""
    limit: Count = Count(10)  # noqa: RUF009
    """how many at most"""
    style: Literal["cosine", "linear"] = "cosine"
    """which curve"""
    folder: Path = Path("here")
    """which folder"""


@dataclasses.dataclass
class Config:
    """A config."""

    name: str = "run"
    """its name"""
    section: Section = dataclasses.field(default_factory=Section)
    sources: list[Source] = dataclasses.field(default_factory=list)
    """its sources"""


def read(tmp_path, text, *words):
    (tmp_path / "config.toml").write_text(text)
    return parse(Config, [str(tmp_path / "config.toml"), *words], "program", "What it does.")


@pytest.mark.parametrize("text, value", [("26e9", 26 * 10**9), ("26_000_000_000", 26 * 10**9), ("7", 7), ("1e3", 1000)])
def test_counts(text, value, tmp_path):
    assert read(tmp_path, f"[section]\ntokens = {text}\n").section.tokens == value
    assert read(tmp_path, "", "--section.tokens", text).section.tokens == value
    assert isinstance(read(tmp_path, "", "--section.tokens", text).section.tokens, int)


@pytest.mark.parametrize("text", ["1.5", "true", '"many"', "inf", "nan"])
def test_not_counts(text, tmp_path):
    with pytest.raises(InputError, match=r"config\.toml.*section\.tokens"):
        read(tmp_path, f"[section]\ntokens = {text}\n")


MISTAKES = {
    "[section]\ntokns = 3\n": "unknown key 'section.tokns'; did you mean 'section.tokens'?",
    "nmae = 'x'\n": "unknown key 'nmae'; did you mean 'name'?",
    "[section]\nstyle = 'cubic'\n": "section.style",
    "[[sources]]\nweight = 1.0\n": "sources",
    "[[sources]]\npath = 'a'\nwieght = 1.0\n": "wieght",
    "name = [1, 2]\n": "name",
    "name = 'x\n": "is not valid TOML",
    "a = 1\na = 2\n": "is not valid TOML",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_one_sentence_with_file_and_key(text, tmp_path):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    told = str(caught.value)
    assert "config.toml" in told and MISTAKES[text] in told and "\n" not in told, told
    assert "<class" not in told and "jsonargparse" not in told, told


def test_absent_file_and_directory(tmp_path):
    with pytest.raises(InputError, match=r"absent\.toml does not exist"):
        parse(Config, [str(tmp_path / "absent.toml")], "program", "")
    with pytest.raises(InputError, match="is a directory"):
        parse(Config, [str(tmp_path)], "program", "")
    (tmp_path / "latin.toml").write_bytes('name = "caf\xe9"'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.toml is not valid TOML"):
        parse(Config, [str(tmp_path / "latin.toml")], "program", "")


def test_dump_and_save_read_back_equal(tmp_path):
    text = """
        name = "β-sheets \\"quoted\\""
        [section]
        tokens = 26e9
        style = "linear"
        folder = "a/b"
        [[sources]]
        path = "x"
        weight = 0.25
        [[sources]]
        path = "y"
    """
    config = read(tmp_path, text)
    assert config.section == Section(Count(26 * 10**9), Count(10), "linear", Path("a/b"))
    assert config.sources == [Source("x", 0.25), Source("y")]
    save(config, tmp_path / "saved.toml")
    assert (tmp_path / "saved.toml").read_text() == dump(config)
    assert parse(Config, [str(tmp_path / "saved.toml")], "program", "") == config
    assert as_dict(config)["section"] == {"tokens": 26 * 10**9, "limit": 10, "style": "linear", "folder": "a/b"}


def test_print_config_reads_back_equal(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        read(tmp_path, "[section]\ntokens = 5\n", "--name", "other", "--print_config")
    assert not left.value.code
    printed = capsys.readouterr().out
    (tmp_path / "printed.toml").write_text(printed)
    assert parse(Config, [str(tmp_path / "printed.toml")], "program", "") == Config("other", Section(Count(5)))


def test_command_line_wins_over_the_file(tmp_path):
    assert read(tmp_path, 'name = "file"\n', "--name", "line").name == "line"
    with pytest.raises(InputError, match=r"unknown key 'section.tokns'"):
        read(tmp_path, "", "--section.tokns", "3")


def test_a_list_on_the_command_line_is_json(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(InputError, match=r'key "sources": .*written as JSON'):
        parse(Config, [str(tmp_path / "config.toml"), "--sources", "shards"], "program", "")
    config = parse(Config, [str(tmp_path / "config.toml"), "--sources", '[{"path": "shards"}]'], "program", "")
    assert config.sources[0].path == "shards"


def test_help_teaches(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        parse(Config, ["--help"], "program", "What it does.")
    assert not left.value.code
    text = capsys.readouterr().out
    assert all(word in text for word in ("What it does.", "--section.tokens", "how many tokens", "{cosine,linear}"))
