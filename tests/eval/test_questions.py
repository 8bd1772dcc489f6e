"""Question sets as published: real rows, every way in which files go wrong, and PubMedQA's split by id."""

import collections
import csv
import json
import random

import pytest

from eval.qa import pubmedqa
from eval.qa.files import read_medmcqa
from eval.qa.questions import MMLU_ROWS, OFFICIAL_ROWS, found_sets, read_set
from job.errors import InputError


def lines(path):
    return [json.loads(line) for line in path.open(encoding="utf-8", newline="\n")]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_real_sets_are_found(real_data):
    missing = {"medqa_5_options", "mmlu_high_school_biology", "mmlu_nutrition", "mmlu_virology"}
    assert set(found_sets([real_data])) == OFFICIAL_ROWS.keys() - missing
    assert len(MMLU_ROWS) == 9 and sum(MMLU_ROWS.values()) == 1862 + 9


def test_medmcqa(real_data, tmp_path):
    found = read_set("medmcqa", [real_data])
    rows = lines(real_data / "medmcqa" / "dev_sample_open.json")
    assert [question.id for question in found.questions] == [row["id"] for row in rows]
    for question, row in zip(found.questions, rows, strict=True):
        assert question.options[question.gold] == row[f"op{'abcd'[row['cop'] - 1]}"].strip()
    assert any("counts from 1" in note for note in found.notes)
    assert any("1,997 rows are scored; the published file has 4,183" in note for note in found.notes)
    assert "None" in {option for question in found.questions for option in question.options}

    # The hub's copy counts from 0: the same answers.
    write_lines(tmp_path / "medmcqa" / "dev.json", [row | {"cop": row["cop"] - 1} for row in rows])
    hub = read_set("medmcqa", [tmp_path])
    assert [question.gold for question in hub.questions] == [question.gold for question in found.questions]
    assert any("counts from 0" in note for note in hub.notes)
    write_lines(tmp_path / "few.json", [row for row in rows if row["cop"] in (2, 3)][:5])
    assert "neither cop 0 nor cop 4" in read_medmcqa(tmp_path / "few.json")[1]


def test_training_rows_are_the_examples(real_data, tmp_path):
    rows = lines(real_data / "medmcqa" / "dev_sample_open.json")
    write_lines(tmp_path / "medmcqa" / "dev.json", rows[:100])
    write_lines(tmp_path / "medmcqa" / "train.json", [*rows[100:400], rows[400] | {"opb": ""}])
    found = read_set("medmcqa", [tmp_path], held_out=20)
    assert (len(found.questions), len(found.examples)) == (100, 300)  # nothing is held out where there are others
    assert any("1 rows of train.json were not used" in note and "opb" in note for note in found.notes)
    assert found.shown()[:3] == found.examples[:3]
    assert found.shown(1) == found.shown(1) != found.shown(2)
    assert not {question.id for question in found.shown(1)} & {question.id for question in found.questions}

    held = read_set("medmcqa", [real_data], held_out=20)
    assert [question.id for question in held.questions + held.examples] == [row["id"] for row in rows]
    assert len(held.examples) == 20 and any("last 20 rows serve as examples" in note for note in held.notes)
    with pytest.raises(InputError, match="cannot be held out"):
        read_set("medmcqa", [real_data], held_out=1997)


def test_medqa_with_four_and_with_five_options(real_data, tmp_path):
    rows = lines(real_data / "medqa_us_4options" / "sample_open.jsonl")
    found = read_set("medqa_4_options", [real_data])
    assert [question.options[question.gold] for question in found.questions] == [row["answer"].strip() for row in rows]
    official = tmp_path / "MedQA" / "questions" / "US"
    more = [row | {"options": row["options"] | {"E": "None of these"}} for row in rows[:40]]
    write_lines(official / "test.jsonl", more[:20])
    write_lines(official / "train.jsonl", more[20:])
    write_lines(official / "US_qbank.jsonl", more)
    write_lines(official / "4_options" / "phrases_no_exclude_test.jsonl", rows[:30])
    write_lines(tmp_path / "MedQA" / "questions" / "Mainland" / "test.jsonl", rows[:3])
    five = read_set("medqa_5_options", [tmp_path])
    assert (len(five.questions), len(five.examples)) == (20, 20)
    assert {len(question.options) for question in five.questions} == {5}
    assert len(read_set("medqa_4_options", [tmp_path]).questions) == 30


def test_mmlu(real_data, tmp_path):
    for subject in ("anatomy", "professional_medicine"):
        path = real_data / "mmlu_med" / f"{subject}_test.csv"
        rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
        found = read_set(f"mmlu_{subject}", [real_data])
        assert [[question.question, *question.options] for question in found.questions] == [
            [cell.strip() for cell in row[:5]] for row in rows
        ]
        assert ["ABCD"[question.gold] for question in found.questions] == [row[5] for row in rows]
    for name in ("test/anatomy_test.csv", "dev/anatomy_dev.csv", "val/anatomy_val.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('"What, then?",NA,None,nan,null,C\n')
    found = read_set("mmlu_anatomy", [tmp_path])
    assert found.questions[0].options == ("NA", "None", "nan", "null")
    assert found.examples[0].id == "anatomy_dev-1" and set(found.files) == {"anatomy_test.csv", "anatomy_dev.csv"}


def test_pubmedqa_rows_are_called_what_they_are(real_data, tmp_path, monkeypatch):
    found = read_set("pubmedqa", [real_data])
    assert found.name == "pubmedqa_as_given"
    assert any("official cross-validation half by id; they are not the official test" in note for note in found.notes)
    counts = collections.Counter(question.options[question.gold] for question in found.questions)
    assert counts == {"yes": 276, "no": 169, "maybe": 55}  # as in the official test: counts prove nothing

    rows = json.loads((real_data / "pubmedqa" / "ori_pqal_train_dev500.json").read_text(encoding="utf-8"))
    first = found.questions[0]
    assert first.context.split("\n") == rows[first.id]["CONTEXTS"]
    assert rows[first.id]["LONG_ANSWER"] not in first.context

    # A ground truth picks the scored rows; the others may be learnt from.
    (tmp_path / "ori_pqal.json").write_text(json.dumps(rows), encoding="utf-8")
    truth = {name: row["final_decision"] for name, row in list(rows.items())[::2]}
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth))
    half = read_set("pubmedqa", [tmp_path])
    assert [question.id for question in half.questions] == list(truth) and len(half.examples) == 250
    assert half.name == "pubmedqa_as_given"
    monkeypatch.setattr(pubmedqa, "OFFICIAL_TEST", pubmedqa.digest(truth))
    assert read_set("pubmedqa", [tmp_path]).name == "pubmedqa"

    name = next(iter(truth))
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth | {name: "maybe"}))
    with pytest.raises(InputError, match=f"says maybe for id {name}, whose row says yes"):
        read_set("pubmedqa", [tmp_path])
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(truth | {"1": "yes"}))
    with pytest.raises(InputError, match="1 ids without a question, such as 1"):
        read_set("pubmedqa", [tmp_path])


def test_official_repository_of_pubmedqa(real_data, tmp_path, monkeypatch):
    """All files as github.com/pubmedqa/pubmedqa has them after its preprocessing: none is taken for another set's."""
    rows = json.loads((real_data / "pubmedqa" / "ori_pqal_train_dev500.json").read_text(encoding="utf-8"))
    test = dict(list(rows.items())[::2])
    rest = {name: row for name, row in rows.items() if name not in test}
    monkeypatch.setattr(pubmedqa, "OFFICIAL_TEST", pubmedqa.digest(test))
    data = tmp_path / "pubmedqa" / "data"
    unlabelled = {"1": {"QUESTION": "Is it?", "CONTEXTS": ["It is."]}}
    for file, content in {
        "ori_pqal.json": rows,
        "ori_pqaa.json": test,
        "ori_pqau.json": unlabelled,
        "test_set.json": test,
        "test_ground_truth.json": {name: row["final_decision"] for name, row in test.items()},
        "pqaa_train_set.json": test,
        "pqaa_dev_set.json": rest,
        "pqal_fold0/train_set.json": rest,
        "pqal_fold0/dev_set.json": rest,
    }.items():
        (data / file).parent.mkdir(parents=True, exist_ok=True)
        (data / file).write_text(json.dumps(content), encoding="utf-8")
    write_lines(tmp_path / "medqa" / "test.jsonl", lines(real_data / "medqa_us_4options" / "sample_open.jsonl")[:5])
    for given in ([tmp_path], [tmp_path / "pubmedqa", tmp_path / "medqa"], [data, tmp_path / "medqa"]):
        assert found_sets(given) == ["pubmedqa", "medqa_4_options"]
        found = read_set("pubmedqa", given)
        assert found.name == "pubmedqa" and [question.id for question in found.questions] == list(test)
        assert [question.id for question in found.examples] == list(rest)
    for file in ("ori_pqal.json", "test_ground_truth.json"):
        (data / file).unlink()
    assert [question.id for question in read_set("pubmedqa", [tmp_path]).questions] == list(test)  # of test_set.json


def test_other_json_beside_questions_is_no_question_set(tmp_path):
    write_lines(tmp_path / "medqa" / "test.jsonl", [QA])
    for file in ("dataset_infos.json", "config.json"):
        (tmp_path / "medqa" / file).write_text('{\n  "question": {}\n}\n')
        (tmp_path / file).write_text('{"question": "no directory tells which set"}')
    assert found_sets([tmp_path]) == ["medqa_4_options"]


def test_blank_lines_at_the_end_are_nothing(tmp_path):
    path = tmp_path / "medmcqa" / "dev.json"
    write_lines(path, [MCQ])
    path.write_text(path.read_text() + "\n \n")
    assert len(read_set("medmcqa", [tmp_path]).questions) == 1
    path.write_text(path.read_text() + json.dumps(MCQ | {"id": "b"}) + "\n")
    with pytest.raises(InputError, match="line 2, is blank, and rows follow"):
        read_set("medmcqa", [tmp_path])


def test_split_is_that_of_the_published_script():
    """Pinned: what split_dataset.py of pubmedqa/pubmedqa gives for these ids and labels."""
    labels = {
        str(number): (["yes", "no", "yes", "maybe", "yes", "no", "yes", "no", "yes"])[number % 9]
        for number in range(1000)
    }
    folds, test = pubmedqa.official_split(labels)
    assert pubmedqa.digest(test)[:16] == "b7d8fb4005f5b20b"
    assert [pubmedqa.digest(folds[number])[:16] for number in (0, 9)] == ["46dc3a475bcf5c51", "1f07bc51c2cb572b"]
    assert sorted([*test, *(name for fold in folds for name in fold)], key=int) == list(labels)


def test_official_test_is_rebuilt_from_all_rows(real_data):
    file = real_data / "pubmedqa" / "ori_pqal.json"
    if not file.exists():
        pytest.skip(f"{file}, the published file with all 1,000 rows, is not there")
    found = read_set("pubmedqa", [file.parent])
    assert found.name == "pubmedqa" and len(found.questions) == 500
    assert pubmedqa.digest(question.id for question in found.examples) == pubmedqa.OFFICIAL_CROSS_VALIDATION


MCQ = {"id": "a", "question": "Which?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 4}
QA = {"question": "Which?", "options": {"A": "1", "B": "2", "C": "3", "D": "4"}, "answer_idx": "D", "answer": "4"}
PQA = {"QUESTION": "Is it?", "CONTEXTS": ["It is."], "final_decision": "yes"}


def pqa(**changes):
    return json.dumps({"1": PQA | changes})


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("medmcqa", "medmcqa/dev.json", [MCQ, MCQ], "has the id a twice"),
        ("medmcqa", "medmcqa/dev.json", [MCQ, MCQ | {"id": "b", "cop": 0}], "cop 0 and rows with cop 4"),
        ("medmcqa", "medmcqa/dev.json", [MCQ, MCQ | {"id": "b", "cop": 5}], "line 2, names option 5, which does not"),
        ("medmcqa", "medmcqa/dev.json", [MCQ, MCQ | {"id": "b", "cop": None}], "line 2, has no answer"),
        ("medmcqa", "medmcqa/dev.json", [MCQ | {"opc": " "}], "line 1, has no text in opc"),
        (
            "medmcqa",
            "medmcqa/dev.json",
            [{"question": "Which?"}],
            "has no id, cop, opa, opb, opc, opd; it has",
        ),
        ("medmcqa", "medmcqa/dev.json", "[]\n", "line 1, is not a JSON object"),
        ("medmcqa", "medmcqa/dev.json", "{\n", "line 1, is not JSON"),
        ("medmcqa", "medmcqa/dev.json", "", "has no rows"),
        ("medqa_4_options", "medqa/test.jsonl", [QA | {"answer_idx": "E"}], "names option 'E', which does not exist"),
        ("medqa_4_options", "medqa/test.jsonl", [QA | {"answer_idx": ""}], "line 1, has no answer"),
        ("medqa_4_options", "medqa/test.jsonl", [QA | {"answer_idx": "A"}], "contradicts itself"),
        ("medqa_4_options", "medqa/test.jsonl", [QA | {"options": {"A": "1"}}], "has not the options A to D or A to E"),
        ("medqa_4_options", "medqa/test.jsonl", [{"question": "Which?"}], "has no options, answer_idx"),
        ("mmlu_anatomy", "anatomy_test.csv", "Which?,1,2,3,4\n", "row 1, has 5 columns"),
        ("mmlu_anatomy", "anatomy_test.csv", "Which?,1,2,3,4,E\n", "names option 'E', which does not exist"),
        ("mmlu_anatomy", "anatomy_test.csv", "question,A,B,C,D,answer\n", "names option 'answer'"),
        ("mmlu_anatomy", "anatomy_test.csv", "Which?,1,2,,4,A\n", "row 1, has no text in column 4"),
        ("mmlu_anatomy", "anatomy_test.csv", "Which?,1,2,3,4,\n", "row 1, has no answer"),
        ("mmlu_anatomy", "anatomy_test.csv", b"Which\xff?,1,2,3,4,A\n", "is not UTF-8"),
        ("pubmedqa", "ori_pqal.json", pqa(final_decision="perhaps"), "has the final_decision 'perhaps'"),
        ("pubmedqa", "ori_pqal.json", pqa(final_decision=""), "has the final_decision ''"),
        ("pubmedqa", "ori_pqal.json", pqa(CONTEXTS=[]), "has no CONTEXTS"),
        ("pubmedqa", "ori_pqal.json", '{"1": {"QUESTION": "Is it?"}}', "has no CONTEXTS, final_decision"),
        ("pubmedqa", "ori_pqal.json", f'{{"1": {json.dumps(PQA)}, "1": {json.dumps(PQA)}}}', "has the id 1 twice"),
        ("pubmedqa", "ori_pqal.json", "[1]", "is not one JSON object"),
        ("pubmedqa", "ori_pqal.json", "{", "is not valid JSON"),
    ],
)
def test_wrong_files(tmp_path, name, file, content, words):
    path = tmp_path / file
    if isinstance(content, list):
        write_lines(path, content)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as caught:
        read_set(name, [tmp_path])
    assert str(path) in str(caught.value)


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(InputError, match="no file of medmcqa lies under"):
        read_set("medmcqa", [tmp_path])
    with pytest.raises(InputError, match="is not a directory"):
        read_set("medmcqa", [tmp_path / "absent"])
    with pytest.raises(InputError, match="there is no question set chemqa"):
        read_set("chemqa", [tmp_path])
    for folder in "ab":
        write_lines(tmp_path / folder / "medmcqa" / "dev.json", [MCQ])
    with pytest.raises(InputError, match="both hold the dev rows of medmcqa"):
        read_set("medmcqa", [tmp_path])
    write_lines(tmp_path / "a" / "medmcqa" / "train.json", [MCQ])
    with pytest.raises(InputError, match="has the id a both among the rows that are scored and"):
        read_set("medmcqa", [tmp_path / "a"])


def test_damaged_real_files_never_end_in_a_traceback(real_data, tmp_path):
    """Bytes changed at random places: rows are read, or one sentence says what is wrong."""
    draw = random.Random(0)
    originals = {
        "medmcqa": ("medmcqa/dev.json", real_data / "medmcqa" / "dev_sample_open.json"),
        "medqa_4_options": ("medqa/test.jsonl", real_data / "medqa_us_4options" / "sample_open.jsonl"),
        "mmlu_anatomy": ("anatomy_test.csv", real_data / "mmlu_med" / "anatomy_test.csv"),
        "pubmedqa": ("ori_pqal.json", real_data / "pubmedqa" / "ori_pqal_train_dev500.json"),
    }
    refused = 0
    for name, (place, original) in originals.items():
        content = original.read_bytes()[:60_000].rpartition(b"\n")[0] + b"\n"
        if name == "pubmedqa":
            content = json.dumps(dict(list(json.loads(original.read_bytes()).items())[:30])).encode()
        for _ in range(25):
            damaged = bytearray(content)
            for _ in range(3):
                damaged[draw.randrange(len(damaged))] = draw.choice(b'{}",:\n\x00\xffA0')
            path = tmp_path / name / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damaged)
            try:
                read_set(name, [tmp_path / name])
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 20
