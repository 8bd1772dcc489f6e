"""BioGPT's relation texts, there and back, and its definitions of what is right."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from eval.biogpt import measure as biogpt
from eval.biogpt.data import DataSet, data_set
from eval.biogpt.documents import FORMATS
from eval.biogpt.relation_metrics import counts, hard_match, micro_metrics
from eval.biogpt.relations import BC5CDR, INTERACTION, Relation, parse, parse_as_authors, target_text
from eval.trust.statistics import RESAMPLES, micro_f1_interval

SPLITS = [
    ("bc5cdr", "train"),
    ("bc5cdr", "valid"),
    ("bc5cdr", "test"),
    ("kd_dti", "valid"),
    ("kd_dti", "test"),
    ("ddi", "train"),
    ("ddi", "valid"),
    ("ddi", "test"),
]

# What microsoft/BioGPT's own rebuild_data.py writes from the same files: SHA-256 over "source<tab>target<newline>".
AUTHORS_TEXTS = {
    ("bc5cdr", "train"): "3b8fd6a90ecb782b",
    ("bc5cdr", "valid"): "312d3bfb3737c875",
    ("bc5cdr", "test"): "a7362578b909ac7a",
    ("kd_dti", "valid"): "e1c6f3b7ad202ee6",
    ("kd_dti", "test"): "60e86c8bf1a87ee8",
    ("ddi", "train"): "b9e28cf86c31b188",
    ("ddi", "valid"): "be0267172209cee9",
    ("ddi", "test"): "6d3d094a30460c25",
    ("hoc", "train"): "36dce5434f7f563e",
    ("hoc", "test"): "94fa33450b7d0ebd",
    ("pubmedqa", "test"): "f493bc3b5ab9eb8c",
}

# Right, wrong and missing of gold answers read back by the authors' postprocess.py; names looked up in one table.
AUTHORS_ROUND_TRIPS = {
    ("bc5cdr", "train"): (1022, 14, 16),
    ("bc5cdr", "valid"): (1000, 9, 9),
    ("bc5cdr", "test"): (557, 6, 7),
    ("kd_dti", "valid"): (2246, 1, 1),
    ("kd_dti", "test"): (788, 2, 2),
    ("ddi", "train"): (3549, 0, 0),
    ("ddi", "valid"): (302, 0, 0),
    ("ddi", "test"): (431, 0, 0),
}


@pytest.fixture(scope="module")
def sets(real_data: Path) -> dict[str, DataSet]:
    found = {name: data_set(name, [real_data]) for name in FORMATS}
    return {name: data for name, data in found.items() if data is not None}


@pytest.mark.real
@pytest.mark.parametrize(("name", "split"), AUTHORS_TEXTS)
def test_sources_and_targets_are_the_authors_own(sets, name, split):
    documents = sets[name].splits[split].documents
    text = "".join(f"{document.source}\t{document.target}\n" for document in documents)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == AUTHORS_TEXTS[name, split]


def scored_split(sets, name, split) -> tuple[DataSet, biogpt.Scores]:
    """Gold answers of a split, scored as if it were the test."""
    chosen = sets[name].splits[split]
    data = DataSet(name, {"test": chosen}, {}, [])
    gold = {document.identifier: document.target for document in chosen.documents}
    return data, biogpt.score(data, chosen.documents, gold, seed=0)


@pytest.mark.real
@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_gold_answers_come_back_exactly(sets, name, split):
    data, scores = scored_split(sets, name, split)
    assert [metric.value for name, metric in scores.metrics.items() if not name.endswith("_authors")] == [1.0] * (
        3 if name == "bc5cdr" else 7
    )
    assert not any(scores.unparsed)
    for document in data.test:  # not only as sets: in order, and nothing left over
        found = parse(document.target, FORMATS[name].template, document.source)
        assert target_text(found.relations, FORMATS[name].template) == document.target
        assert found.malformed == 0


@pytest.mark.real
@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_the_authors_reading_loses_what_theirs_loses(sets, name, split):
    data, scores = scored_split(sets, name, split)
    right, wrong, missing = AUTHORS_ROUND_TRIPS[name, split]
    if name == "bc5cdr":
        f1 = 2 * right / (2 * right + wrong + missing)
        assert scores.metrics["f1_authors"].value == pytest.approx(f1, abs=1e-12)
        assert scores.metrics["precision_authors"].value == pytest.approx(right / (right + wrong), abs=1e-12)
    else:
        predicted = [set(parse_as_authors(document.target, INTERACTION)) for document in data.test]
        table = counts(predicted, [document.gold for document in data.test])
        assert tuple(table.sum(axis=0)) == (right, wrong, missing)


def faulty_answers(data: DataSet) -> dict[str, str]:
    """Answers with relations left out, names in upper case or without their abbreviation, and false labels."""
    template = FORMATS[data.name].template
    answers = {}
    for number, document in enumerate(data.test):
        kept = []
        for place, relation in enumerate(parse(document.target, template, document.source).relations):
            fault = (number + place) % 4
            if fault == 1:
                relation = relation._replace(tail=relation.tail.split("(")[0].strip().upper() or relation.tail)
            if fault == 2:
                false = {"label": "inhibitor"} if relation.label else {"head": "aspirin"}
                relation = relation._replace(**false)
            if fault:
                kept.append(relation)
        answers[document.identifier] = target_text(kept, template) if kept else "nothing is known."
    return answers


# Printed by the authors' postprocess.py and hard_match_evaluation.py on `faulty_answers`: tp p, tp r, tp micro f1 and
# tp macro f1.
HARD_MATCH = {"kd_dti": (0.7018, 0.6548, 0.6719, 0.6775), "ddi": (0.6181, 0.4856, 0.5368, 0.5439)}


@pytest.mark.real
@pytest.mark.parametrize("name", HARD_MATCH)
def test_hard_match_is_what_the_authors_script_prints(sets, name):
    metrics = biogpt.score(sets[name], sets[name].test, faulty_answers(sets[name]), seed=0).metrics
    names = ("precision", "recall", "f1", "f1_of_means")
    found = tuple(round(metrics[f"hard_match_{metric}_authors"].value, 4) for metric in names)
    assert found == HARD_MATCH[name]
    interval = metrics["hard_match_f1_authors"]
    assert interval.low < interval.value < interval.high


@pytest.mark.real
def test_bc5cdr_is_what_the_authors_script_writes(sets):
    metrics = biogpt.score(sets["bc5cdr"], sets["bc5cdr"].test, faulty_answers(sets["bc5cdr"]), seed=0).metrics
    assert metrics["precision_authors"].value == pytest.approx(137 / (137 + 277), abs=1e-12)
    assert metrics["recall_authors"].value == pytest.approx(137 / (137 + 427), abs=1e-12)
    assert metrics["f1"].value > metrics["f1_authors"].value  # names in another case are known names here


@pytest.mark.real
def test_hoc_is_what_the_authors_script_prints(sets):
    answers = {}
    for number, document in enumerate(sets["hoc"].test):
        answer = document.target
        if number % 5 == 0:
            answer = "the type of this document is empty."
        if number % 7 == 0:
            answer = answer[:-1] + " | inducing angiogenesis."
        if number % 11 == 0:
            answer = "unclear"
        answers[document.identifier] = answer
    scores = biogpt.score(sets["hoc"], sets["hoc"].test, answers, seed=0)
    assert scores.metrics["f1"].value == pytest.approx(0.8404315729699035, abs=1e-12)
    assert scores.metrics["f1_authors"].value == pytest.approx(0.8404315729699035, abs=1e-12)
    assert scores.metrics["f1_without_empty"].value < 0.71  # most rows are `empty`: they carry the number
    assert sum(scores.unparsed) == len(range(0, 2473, 11))
    assert scores.baselines["always `empty`"]["f1"].value == pytest.approx(0.670465710355669, abs=1e-12)


@pytest.mark.real
def test_pubmedqa_credits_maybe_and_counts_what_it_cannot_read(sets):
    documents = sets["pubmedqa"].test
    answers = {document.identifier: document.target for document in documents}
    whole = biogpt.score(sets["pubmedqa"], documents, answers, seed=0)
    assert whole.metrics["accuracy"].value == whole.metrics["macro_f1"].value == 1.0
    answers = {name: answer.removesuffix(".") + " in most cases." for name, answer in answers.items()}
    answers[documents[0].identifier] = "it depends"
    scores = biogpt.score(sets["pubmedqa"], documents, answers, seed=0)
    assert scores.metrics["accuracy"].value == 499 / 500
    assert scores.metrics["accuracy_authors"].value == 0.0  # the rest of the line has to be the label and nothing else
    assert scores.unparsed == [True] + [False] * 499
    assert scores.baselines["always `yes`"]["accuracy"].value == 276 / 500


@pytest.mark.parametrize(
    ("answer", "relations", "malformed"),
    [
        ("we can conclude that the relation between a b and c exists.", [("a b", "c", "")], 0),
        ("learned1 learned2 the relation between a and c exists.", [("a", "c", "")], 0),
        ("the relation between a and c exists; the relation between a and", [("a", "c", "")], 1),
        ("the relation between a and c exists. the rest of the abstract exists too.", [("a", "c", "")], 0),
        ("the relation between alpha; beta and gamma exists", [("alpha; beta", "gamma", "")], 0),
        (
            "the relation between iron and iron overload and anaemia exists.",
            [("iron and iron overload", "anaemia", "")],
            0,
        ),
        ("The patient has no relation.", [], 0),
        ("", [], 0),
    ],
)
def test_answers_of_models_are_read(answer, relations, malformed):
    found = parse(answer, BC5CDR, "about iron and iron  overload, and anaemia; a b, c")
    assert found.relations == [Relation(*relation) for relation in relations]
    assert found.malformed == malformed


def test_interactions_are_read_where_an_answer_goes_on():
    text = "the interaction between mao - a and st. john's wort is weak inhibitor. the patient is well; so it is"
    assert parse(text, INTERACTION, "MAO-A").relations == [Relation("mao - a", "st. john's wort", "weak inhibitor")]
    names = "the interaction between calcium and vitamin d and phenytoin is effect."
    assert parse(names, INTERACTION, "phenytoin with calcium and vitamin d").relations == [
        Relation("calcium and vitamin d", "phenytoin", "effect")
    ]


def test_hard_match_takes_names_or_their_abbreviations():
    gold = [Relation("Psoralen", "monoamine oxidase type a (mao-a)", "inhibitor")]
    assert hard_match([Relation("psoralen", "Monoamine oxidase type A", "inhibitor")], gold).f1 == 1.0
    assert hard_match([Relation("psoralen", "MAO-A", "inhibitor")], gold).f1 == 1.0
    assert hard_match([Relation("psoralen", "mao-b", "inhibitor")], gold).f1 == 0.0
    # The last digit alone becomes a Roman numeral, which is then unequal to the lower-case numeral of the gold name.
    assert hard_match([Relation("a", "factor 2", "x")], [Relation("a", "factor ii", "x")]).f1 == 0.0
    assert hard_match([], gold) == (0.0, 0.0, 0.0)


def test_micro_f1_by_hand():
    table = counts([{1, 2}, {3}, set()], [{1}, {3, 4}, {5}])
    assert table.tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 1]]
    metrics = micro_metrics(table)
    assert (metrics["precision"].value, metrics["recall"].value) == (2 / 3, 2 / 4)
    assert metrics["f1"].value == pytest.approx(4 / 7)
    assert micro_metrics(counts([set(), set()], [{1}, {2}]))["f1"].low is None


def test_micro_f1_interval_is_that_of_resampled_documents():
    random = np.random.default_rng(3)
    table = random.integers(0, 4, (120, 3))
    low, high = micro_f1_interval(table)
    rows = random.integers(0, 120, (RESAMPLES, 120))
    right, wrong, missing = table[rows].sum(axis=1).T
    expected = np.percentile(2 * right / (2 * right + wrong + missing), [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.004)
    assert micro_f1_interval(table) == (low, high)
