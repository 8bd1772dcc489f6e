"""`python -m align build`: real files to shards, the same bytes every time, everything left out accounted for."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset

from align import build, inspect
from align.molecules import featurise
from align.question_shards import SPLITS, QuestionSet
from job.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.real


def run(*words):
    return build.main([str(word) for word in words])


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_published_splits_are_kept_and_molecules_counted(real_data, tmp_path, capsys):
    folder = real_data / "chebi20"
    train, test = folder / "train_split_from_prompts_616.txt", folder / "test_open.txt"
    run("chebi20", "--train", train, "--test", test, "--out", tmp_path / "out")
    sets = {split: QuestionSet(tmp_path / "out", split) for split in SPLITS}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().split("\n")[:-1]]
    assert len(sets["train"]) + len(sets["test"]) + len(rejected) == 1616 and len(sets["validation"]) == 0
    assert {reject["reason"] for reject in rejected} <= {"too many atoms"}
    wanted = {line.split("\t")[0] for line in test.read_text(encoding="utf-8").split("\n")[1:-1]}
    assert {question.id.removeprefix("chebi20:") for question in sets["test"]} <= wanted
    for number in range(0, 600, 60):
        question = sets["train"][number]
        assert question.atoms == (len(featurise(question.molecules[0], 256).atoms),)
    assert "copying the answer of the nearest training structure" in capsys.readouterr().out


def test_two_builds_are_byte_identical_and_a_third_is_refused_or_skipped(real_data, tmp_path, capsys):
    words = [
        "uniprotqa",
        real_data / "uniprot" / "uniprot_sprot.open.dat.gz",
        "--split",
        "identity",
        "--clusters",
        "kmers",
    ]
    run(*words, "--out", tmp_path / "one")
    run(*words, "--out", tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    run(*words, "--out", tmp_path / "one")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds a build with other settings"):
        run(*words, "--seed", 5, "--out", tmp_path / "one")
    shards = [str(path) for path in sorted((tmp_path / "one" / "train").glob("*.tar"))]
    rows = [
        row for sample in webdataset.WebDataset(shards, shardshuffle=False).decode() for row in sample["questions.json"]
    ]
    assert [row["id"] for row in rows] == [question.id for question in QuestionSet(tmp_path / "one")]
    groups = {
        split: {
            QuestionSet(tmp_path / "one", split).record(n)["group"]
            for n in range(len(QuestionSet(tmp_path / "one", split)))
        }
        for split in SPLITS
    }
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]


def test_killed_and_restarted_a_build_ends_in_the_same_bytes(real_data, tmp_path):
    words = [sys.executable, "-m", "align", "build", "chebi20", str(real_data / "chebi20" / "test_open.txt"), "--out"]
    running = subprocess.Popen([*words, str(tmp_path / "out")], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    writing = tmp_path / ".out.writing"
    deadline = time.monotonic() + 60
    while not writing.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writing.exists(), "the build never began to write"
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "out").exists(), "a killed build leaves nothing that looks finished"
    run("chebi20", real_data / "chebi20" / "test_open.txt", "--leakage-sample", 0, "--out", tmp_path / "out")
    run("chebi20", real_data / "chebi20" / "test_open.txt", "--leakage-sample", 0, "--out", tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_bad_structures_and_duplicates_are_accounted_for(tmp_path):
    rows = [
        {"id": "a", "smiles": "CCO", "question": "Q?", "answer": "A"},
        {"id": "a", "smiles": "CC", "question": "Q?", "answer": "B"},
        {"id": "b", "smiles": "CCO", "question": "Q?", "answer": "A"},
        {"id": "c", "smiles": "c1ccc", "question": "Q?", "answer": "A"},
        {"id": "d", "sequence": "MK1", "question": "Q?", "answer": "A"},
        {"id": "e", "smiles": "[Na+].[Cl-]", "question": "Q?", "answer": " "},
        {"id": "f", "smiles": ["[Na+].[Cl-]", "C"], "question": "Q?", "answer": "salt"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run("questions", "--train", tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    read = QuestionSet(tmp_path / "out")
    assert [(question.id, question.atoms) for question in read] == [("a", (3,)), ("f", (2, 1))]
    assert read.manifest["summary"]["duplicates"] == 1
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().split("\n")[:-1]]
    assert [(r["source_position"], r["reason"]) for r in rejects] == [
        ("line 2", "repeated id"), ("line 4", "invalid SMILES"),
        ("line 5", "invalid sequence"), ("line 6", "empty text"),
    ]  # fmt: skip
    assert "RDKit" in rejects[1]["detail"] and "the id a" in rejects[0]["detail"]


def test_mistakes_are_one_sentence(real_data, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.txt does not exist"):
        run("chebi20", tmp_path / "nothing.txt", "--out", tmp_path / "out")
    with pytest.raises(InputError, match="no input file"):
        run("chebi20", "--out", tmp_path / "out")
    chebi = real_data / "chebi20" / "test_open.txt"
    with pytest.raises(InputError, match="--max-atoms must be at least 1, not -3"):
        run("chebi20", chebi, "--max-atoms", -3, "--out", tmp_path / "out")
    with pytest.raises(InputError, match="--identity must be above 0 and at most 1, not 5"):
        run("chebi20", chebi, "--identity", 5, "--out", tmp_path / "out")
    with pytest.raises(InputError, match=r"its name must end in \.json, \.xml"):
        run("uniprotqa", real_data / "pubchem_desc" / "pcdes.open.jsonl", "--out", tmp_path / "out")
    (tmp_path / "bad.jsonl").write_text('{"smiles": "c1", "question": "Q?", "answer": "A"}')
    with pytest.raises(InputError, match=r"no question is left of 1 rows read; the first: bad\.jsonl, line 1"):
        run("questions", tmp_path / "bad.jsonl", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inspect_shows_a_question(real_data, tmp_path, capsys):
    run("pubchemqa", real_data / "pubchem_desc" / "pcdes.open.jsonl", "--replace-names", "--out", tmp_path / "out")
    assert re.search(r'9\d\d of 9\d\d answers say "This molecule"', capsys.readouterr().out)
    inspect.main([str(tmp_path / "out"), "--order", "3", "--count", "2", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert len(rows) == 2 and all(row["id"].startswith("pubchem:") for row in rows)
    inspect.main([str(tmp_path / "out"), "--id", rows[0]["id"]])
    assert rows[0]["answer"] in capsys.readouterr().out
    inspect.main([str(tmp_path / "out"), "--verify"])
    assert "every shard is as it was written" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["build", "--help"], ["inspect", "--help"]])
def test_help_does_not_import_torch(words):
    code = "import sys, runpy; sys.argv[0] = 'align'; runpy.run_module('align', run_name='__main__')"
    check = f"import atexit, sys; atexit.register(lambda: print('TORCH', 'torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", check, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: python -m align" in done.stdout
    assert "TORCH False" in done.stdout
