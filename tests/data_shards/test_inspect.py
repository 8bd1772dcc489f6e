"""What `inspect` shows is what was built."""

import pytest

from data_shards import inspect
from job.errors import InputError
from tests.data_shards.shard_sets import abstracts, build_abstracts, text_of


@pytest.fixture(scope="module")
def build(real_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("build")
    build_abstracts(directory, real_data, count=150)
    return directory


@pytest.mark.real
def test_every_document_is_found_by_number_with_its_text_and_record(real_data, build, capsys):
    rows = [row for number, row in enumerate(abstracts(real_data, 150)) if number % 13]
    for number in (0, 1, 49, 50, 77, len(rows) - 1):
        assert inspect.main([str(build), "--index", str(number), "--tokens", "3"]) == 0
        shown = capsys.readouterr().out
        assert text_of(rows[number]) in shown
        assert f"id: pmid:{rows[number]['pmid']}" in shown
        assert "source_file: pubmed21n1298_abstracts.open.jsonl.gz" in shown
        assert "1  '<s>'" in shown


@pytest.mark.real
def test_a_document_is_found_by_id_pmid_and_doi(real_data, build, capsys):
    row = abstracts(real_data, 150)[131]
    for identifier in (f"pmid:{row['pmid']}", row["pmid"], row["doi"]):
        inspect.main([str(build), "--document", identifier])
        assert text_of(row) in capsys.readouterr().out
    held_out = abstracts(real_data, 150)[13]
    inspect.main([str(build), "--split", "validation", "--document", held_out["pmid"]])
    assert text_of(held_out) in capsys.readouterr().out
    with pytest.raises(InputError, match="other split"):
        inspect.main([str(build), "--document", held_out["pmid"]])


@pytest.mark.real
def test_a_training_window_names_its_documents(build, capsys):
    inspect.main([str(build), "--sample", "4", "--sequence-length", "1024", "--seed", "3"])
    shown = capsys.readouterr().out
    assert shown.startswith("sample 4: 1024 inputs")
    assert shown.count("id") and shown.count("epoch 0, document") >= 2


@pytest.mark.real
def test_a_training_window_shows_where_documents_end(real_data, build, capsys):
    inspect.main([str(build), "--sample", "0", "--sequence-length", "2048", "--seed", "3"])
    head, _, text = capsys.readouterr().out.partition("\n\n")
    documents = [int(line.split("document ")[1].split(":")[0]) for line in head.splitlines()[1:]]
    assert len(documents) >= 4 and text.startswith("<s>\n")
    parts = text.rstrip("\n").split("\n</s> <s>\n")
    assert len(parts) == len(documents)
    rows = [row for number, row in enumerate(abstracts(real_data, 150)) if number % 13]
    assert [part.removeprefix("<s>\n") for part in parts[:-1]] == [text_of(rows[n]) for n in documents[:-1]]
    assert text_of(rows[documents[-1]]).startswith(parts[-1].rstrip("\ufffd")[:200])


@pytest.mark.real
def test_overview_random_and_mistakes(build, capsys, tmp_path):
    inspect.main([str(build)])
    assert "train: 3 shards, 138 documents" in capsys.readouterr().out
    inspect.main([str(build), "--random", "2"])
    assert capsys.readouterr().out.count("document ") == 2
    with pytest.raises(InputError, match="documents 0 to 137"):
        inspect.main([str(build), "--index", "138"])
    with pytest.raises(InputError, match="--tokenizer"):
        inspect.main([str(build), "--index", "0", "--tokenizer", str(tmp_path / "gone")])
