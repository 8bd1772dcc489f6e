"""Generated answers of many shapes, with those that published scorers misread."""

import json

import pytest

from eval.qa.answer_parser import parse

DRUGS = ["Aspirin", "Ibuprofen", "Paracetamol", "Type 1 diabetes", "Type 1"]
DECISIONS = ["yes", "no", "maybe"]


def letter(text, options=DRUGS[:4]):
    found = parse(text, options)
    return None if found is None else "ABCDE"[found]


@pytest.mark.parametrize(
    "text",
    [
        "B",
        " B",
        "b",
        "B.",
        "(B)",
        "B)",
        "[B]",
        '"B"',
        "**B**",
        "B. Ibuprofen",
        "B: Ibuprofen",
        "(B) Ibuprofen",
        "B Ibuprofen",
        "B because it is stronger",
        "B is correct.",
        "Answer: B",
        "Answer: (B)",
        "answer: b",
        "Answer - the answer is B.",
        "The answer is B",
        "The answer is (B).",
        "The correct answer is: B. Ibuprofen",
        "The correct option is B.",
        "The best choice would be B, since it is stronger.",
        "I would choose option B.",
        "Option B",
        "option (B) is right",
        "Ibuprofen",
        "ibuprofen.",
        '"Ibuprofen"',
        "The drug of choice is ibuprofen.",
        "It is Ibuprofen, not aspirin.",
        "It is ibuprofen and not Aspirin",
        "(A) is wrong. (B) fits.",
        "Aspirin is incorrect. Ibuprofen it is.",
        "The patient has pain.\nThe answer is B\n",
        "The answer is A? No. Therefore the final answer is B.",
        "B\n\nQuestion: What is next?\nA. x\nAnswer: C",
        "B\nQuestion: next\nAnswer: A",
        "Ｂ",
        "“B”",
        "The answer is not A. The answer is B.",
        "Not option A, but option B.",
        "Ibuprofen (B)",
        "The answer is: B",
        "The answer is: **B**",
        "The answer would be: B",
        "the correct option is:\nB",
        "\\boxed{B}",
        "So the answer is $\\boxed{\\text{B}}$.",
        "\\boxed{Ibuprofen}",
        "<answer>B</answer>",
        "<answer>\nB. Ibuprofen\n</answer>",
        "It's B",
        "It is B.",
        "It’s B, as A is too weak.",
        "I'd go with B",
        "I would pick (B).",
        "B</s>",
        "<s> B</s>",
        "B<|eot_id|><|start_header_id|>user",
        "Aspirin inhibits platelets. Ibuprofen inhibits both. Therefore the answer is Ibuprofen",
        "Aspirin is old, paracetamol is weak. The best option is ibuprofen, which is neither.",
        "The answer is probably ibuprofen.",
        "The answer is Aspirin? No. Therefore the final answer is ibuprofen.",
        "A. Aspirin\nB. Ibuprofen\nThe answer is B",
        "B. Ibuprofen\nB. Ibuprofen\nB. Ibuprofen",
        "B) Ibuprofen. Explanation: A. Aspirin is wrong",
        "B\n\nExplanation:\nA. Aspirin is not",
    ],
)
def test_says_b(text):
    assert letter(text) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I cannot answer this question.",
        "cannot tell",
        "because of x",
        "As an AI, I do not know.",
        "A patient with pain should see a doctor.",
        "B or C",
        "A and B",
        "Both (A) and (B)",
        "E",
        "F",
        "Z.",
        "None of the above",
        "The answer is not B",
        "The answer is unclear",
        "B. Aspirin",
        "Aspirin or ibuprofen",
        "Not ibuprofen",
        "B cells are lymphocytes",
        "B-cells",
        "C-reactive protein",
        "D dimer is measured",
        "abcd",
        "12",
        "The answer is A. The answer is B.",
        "A, B, C and D",
        "Question: What is it?\nAnswer: B",
        "it isn't option B",
        "Rule out (B)",
        "Option B is wrong",
        "The answer is aspirin or ibuprofen",
        "The answer is Aspirin. The answer is B.",
        "The answer is not ibuprofen, perhaps aspirin or paracetamol",
        "It's B or C",
        "It is a matter of taste.",
        "It's B-cells that do",
        "</s>",
        "\\boxed{}",
        "<answer></answer>",
        "A. Aspirin\nB. Ibuprofen\nC. Paracetamol",
        "(A) Aspirin (B) Ibuprofen",
        "A. Aspirin, B. Ibuprofen, C. Paracetamol",
        "B. Ibuprofen\nC. Paracetamol",
        "A\nB\nC\nD",
    ],
)
def test_says_nothing_certain(text):
    assert letter(text) is None


@pytest.mark.parametrize(
    ("text", "options", "found"),
    [
        ("Type 1 diabetes", DRUGS, 3),
        ("Type 1 is not it. The answer is: Type 1 diabetes.", DRUGS, 3),
        ("The answer is 10.", ["10", "100", "1000", "5"], 0),
        ("The answer is 10 of 100 patients", ["10", "100", "1000", "5"], None),
        (
            "Aspirin inhibits cyclooxygenase. Heparin activates antithrombin. Therefore the answer is Heparin",
            ["Aspirin", "Warfarin", "Heparin", "Alteplase"],
            2,
        ),
        ("It is type 1 diabetes.", DRUGS, 3),  # the longer of two options within each other
        ("E", DRUGS, 4),
        ("E", DRUGS[:4], None),  # a letter that does not exist
        ("10", ["10", "100", "1000", "5"], 0),
        ("About 10 of 100 patients", ["10", "100", "1000", "5"], None),
        ("There is no difference", ["No", "Yes", "Both", "Neither"], None),
        ("No", ["No", "Yes", "Both", "Neither"], 0),
        ("None", ["None", "All", "A", "B only"], 0),
        ("All of the above", ["Heart", "Lung", "Liver", "All of the above"], 3),
        ("Not Recalled", ["Africas", "Caucians", "Not Recalled", "Not Recalled"], None),  # MedMCQA has options twice
        ("C", ["Africas", "Caucians", "Not Recalled", "Not Recalled"], 2),
        ("1.5 mg", ["1.5 mg", "15 mg", "5 mg", "1 mg"], 0),
        ("A. Aspirin is given", ["Aspirin", "Ibuprofen", "Paracetamol", "None"], 0),
        ("A aspirin", ["Aspirin", "Ibuprofen", "Paracetamol", "None"], 0),
        ("Beta-blockers", ["Alpha-blockers", "Beta-blockers", "ACE inhibitors", "Statins"], 1),
        ("Beta blockers are given", ["Alpha-blockers", "Beta-blockers", "ACE inhibitors", "Statins"], 1),
        ("Vitamin C", ["Vitamin A", "Vitamin B", "Vitamin C", "Vitamin D"], 2),
        ("C", ["Vitamin A", "Vitamin B", "Vitamin C", "Vitamin D"], 2),
    ],
)
def test_options(text, options, found):
    assert parse(text, options) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("no", "no"),
        ("No,", "no"),
        ("maybe", "maybe"),
        (" maybe", "maybe"),
        ("Maybe.", "maybe"),
        ("the answer is maybe.", "maybe"),
        ("The answer is yes", "yes"),
        ("yes because it lowers risk", "yes"),
        ("No because there was none", "no"),
        ("No, there was no difference", "no"),
        ("no it does not", "no"),
        ("The answer to the question given the context is no.", "no"),
        ("Answer: maybe", "maybe"),
        ("**Yes**", "yes"),
        ('The answer is "no".', "no"),
        ("The answer is most likely yes.", "yes"),
        ("yesyes", "yes"),
        ("yes yes yes", "yes"),
        ("nono", "no"),
        ("So, in my opinion, yes.", "yes"),
        ("Therefore maybe.", "maybe"),
        ("Conclusion: no", "no"),
        ("Maybe not", "maybe"),
        ("yes\n\nQuestion: Is it?\nAnswer: no", "yes"),
        ("Yes, no harm was seen", "yes"),
        ("Out of yes, no and maybe, the answer is maybe", "maybe"),
        ("The answer is: yes", "yes"),
        ("\\boxed{no}", "no"),
        ("<answer>maybe</answer>", "maybe"),
        ("no</s>", "no"),
        ("Yes, but no difference was seen in women", "yes"),
        ("yes, but no", None),
        ("Yes. No.", None),
        ("yes\nno\nmaybe", None),
        ("Yes. No difference was seen", "yes"),
        ("no\nno\nno", "no"),
        ("No, but maybe", None),
        ("", None),
        ("yesno", None),
        ("yes or no", None),
        ("yes/no/maybe", None),
        ("yes and no", None),
        ("Yes, no or maybe?", None),
        ("No significant difference was found", None),
        ("no evidence was found for harm", None),
        ("There is no doubt", None),
        ("It cannot be said", None),
        ("unclear", None),
        ("eyes", None),
        ("nobody knows", None),
        ("The answer is not yes", None),
        ("not yes", None),
        ("The answer is yes. The answer is no.", None),
        ("I cannot answer that.", None),
        ("A", None),
        ("knowledge is limited", None),
        ("note that", None),
    ],
)
def test_decisions(text, found):
    number = parse(text, DECISIONS)
    assert (None if number is None else DECISIONS[number]) == found


def test_gold_answers_of_real_rows_are_read_back(real_data):
    """Every right option's own words, the letter, and the letter with the words; twice-occurring options aside."""
    rows = [json.loads(line) for line in (real_data / "medmcqa" / "dev_sample_open.json").open(encoding="utf-8")]
    misread = []
    for row in rows:
        options = [row[f"op{letter}"].strip() for letter in "abcd"]
        gold = row["cop"] - 1
        for text in ("ABCD"[gold], f"({'ABCD'[gold]}) {options[gold]}", f"The answer is {'ABCD'[gold]}."):
            assert parse(text, options) == gold, text
        if len({option.casefold() for option in options}) == 4 and parse(options[gold], options) != gold:
            misread.append((options[gold], options))
    # Words alone are ambiguous where an option is a letter of another, or differs from another in its signs only.
    assert len(misread) <= 0.01 * len(rows), misread
