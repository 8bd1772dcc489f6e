"""Question shards: what is written is read back by number, by stock webdataset, and damage is named."""

import hashlib
import pickle
from pathlib import Path

import pytest
import webdataset

from align.question_shards import QuestionSet, find, write_split
from align.questions import Question
from job.errors import InputError
from tests.align.question_sets import chebi_questions, write_set

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def questions(real_data):
    return chebi_questions(real_data, 2500)


@pytest.fixture
def small_set(questions, tmp_path):
    """Three shards of two blocks each, and an odd rest."""
    return write_set(tmp_path / "set", questions[:110], questions[110:117], block_rows=20, shard_bytes=15_000)


def test_every_row_comes_back_by_its_number(questions, tmp_path):
    directory = write_set(tmp_path / "set", questions)
    read = QuestionSet(directory)
    assert len(read) == len(questions) == 2500
    assert [read[number] for number in (0, 999, 1000, 2499)] == [questions[number] for number in (0, 999, 1000, 2499)]
    assert list(read) == questions
    assert len(QuestionSet(directory, "test")) == 0
    with pytest.raises(IndexError):
        read[2500]


def test_several_shards_read_as_one(questions, small_set):
    read = QuestionSet(small_set)
    assert len(read.infos) > 2
    assert list(read) == questions[:110]
    assert list(QuestionSet(small_set, "validation")) == questions[110:117]
    assert list(pickle.loads(pickle.dumps(read))) == questions[:110]
    assert find(read, questions[77].id) == 77
    with pytest.raises(InputError, match="no question with the id 'nobody'"):
        find(read, "nobody")


def test_all_fields_survive(tmp_path):
    several = Question(
        "a", "What binds β-sheets ≥ 2?\u2028", 'say "no"\n', ("CCO", "[Na+].[Cl-]"), ("MKV", "ACD*"), (3, 2)
    )
    directory = write_set(tmp_path / "set", [several, Question("b", "?", "!")])
    assert list(QuestionSet(directory)) == [several, Question("b", "?", "!")]
    assert QuestionSet(directory).structures() == (["CCO", "[Na+].[Cl-]"], ["MKV", "ACD*"])


def test_structures_are_listed_once(questions, small_set):
    molecules, proteins = QuestionSet(small_set).structures()
    assert molecules == list(dict.fromkeys(question.molecules[0] for question in questions[:110]))
    assert proteins == []


def test_stock_webdataset_opens_and_decodes(questions, small_set):
    shards = sorted(str(path) for path in (small_set / "train").glob("*.tar"))
    rows = []
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
        rows += sample["questions.json"]
    assert [Question.from_record(row) for row in rows] == questions[:110]


def test_the_same_questions_give_the_same_bytes(questions, tmp_path):
    for name in ("one", "two"):
        write_split(tmp_path / name, (question.to_json() for question in questions[:300]), block_rows=64)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_checksums_in_the_manifest_are_those_of_the_files(small_set):
    read = QuestionSet(small_set)
    for info in read.infos:
        assert hashlib.sha256((small_set / "train" / info.name).read_bytes()).hexdigest() == info.sha256
    read.verify()


def test_a_flipped_bit_is_named_when_its_row_is_read(small_set):
    shard = QuestionSet(small_set).infos[1].name
    path: Path = small_set / "train" / shard
    content = bytearray(path.read_bytes())
    content[3000] ^= 4
    path.write_bytes(content)
    read = QuestionSet(small_set)
    assert read[0].id  # another shard
    with pytest.raises(InputError, match=rf"{shard} is damaged: row \d+, bytes \d+ to \d+"):
        list(read)
    with pytest.raises(InputError, match=shard):
        read.verify()


def test_a_short_shard_and_a_missing_index_are_named(small_set):
    read = QuestionSet(small_set)
    first, second = (small_set / "train" / info.name for info in read.infos[:2])
    content = second.read_bytes()
    second.write_bytes(content[:-512])
    with pytest.raises(InputError, match=f"{second.name} has {len(content) - 512} bytes, but the manifest says"):
        QuestionSet(small_set)
    first.with_suffix(".index.npy").unlink()
    with pytest.raises(InputError, match=r"questions-000000\.index\.npy is missing"):
        QuestionSet(small_set)


def test_an_unknown_split_and_a_strange_directory_are_refused(small_set, tmp_path):
    with pytest.raises(InputError, match="no split 'dev'; it has train, validation, test"):
        QuestionSet(small_set, "dev")
    with pytest.raises(InputError, match="not the finished output of 'align build'"):
        QuestionSet(tmp_path)
