"""The prompt is the released model's, to the character."""

import pytest

from align.prompts import Prompt, Turn, build_prompt
from align.questions import Question
from align.settings import BIOLOGY, PromptSettings

# Written out from the released code and its notebook, not from the constants under test.
NOTEBOOK = (
    "You are working as an excellent assistant in chemistry and molecule discovery. Below a human expert gives the "
    "representation of a molecule or a protein. Answer questions about it. ### Human: <molecule><moleculeHere>"
    "</molecule> Please describe this molecule. ### Assistant: "
)
CHAT = (
    "You are working as an excellent assistant in biology. Below a human gives the representation of a molecule or a "
    "protein. Answer some questions about it. ### Human: <protein><proteinHere></protein> What is the function of this "
    "protein? ### Assistant: "
)


def test_molecule_prompt_of_the_notebook():
    turn = Turn("Please describe this molecule.", molecules=("CCO",))
    assert build_prompt(PromptSettings(), [turn]).text() == NOTEBOOK


def test_protein_prompt_of_the_chat_program():
    turn = Turn("What is the function of this protein?", proteins=("MKV",))
    assert build_prompt(PromptSettings(system=BIOLOGY), [turn]).text() == CHAT


def test_finished_turns_end_with_the_separator():
    turns = [Turn("What is it?", "An alcohol.", ("CCO",)), Turn("Why?")]
    assert build_prompt(PromptSettings(system=""), turns).text() == (
        "### Human: <molecule><moleculeHere></molecule> What is it? ### Assistant: An alcohol. ### Human: Why? "
        "### Assistant: "
    )


def test_several_structures_keep_their_order_molecules_first():
    turn = Turn("Do they bind?", molecules=("CCO", "C"), proteins=("MKV",), atoms=(3, 1))
    prompt = build_prompt(PromptSettings(system="S "), [turn])
    assert prompt.text() == (
        "S ### Human: <molecule><moleculeHere></molecule> <molecule><moleculeHere></molecule> <protein><proteinHere>"
        "</protein> Do they bind? ### Assistant: "
    )
    assert [tuple(structure) for structure in prompt.structures] == [
        ("molecule", "CCO", 3),
        ("molecule", "C", 1),
        ("protein", "MKV", None),
    ]


def test_placeholder_in_a_question_is_text():
    prompt = build_prompt(PromptSettings(), [Turn("What does <moleculeHere> mean?")])
    assert prompt.structures == [] and len(prompt.pieces) == 1


def test_other_roles_and_separator():
    settings = PromptSettings("", "USER", "ASSISTANT", "</s>")
    assert build_prompt(settings, [Turn("Why?")]) == Prompt(["</s> USER: Why? </s> ASSISTANT: "], [])


def test_answer_of_a_training_question_is_left_out():
    question = Question("x", "Why?", "Because.", ("C",), (), (1,))
    assert Turn.asking(question) == Turn("Why?", None, ("C",), (), (1,))


def test_atoms_must_match_molecules():
    with pytest.raises(ValueError):
        build_prompt(PromptSettings(), [Turn("Why?", molecules=("C", "CC"), atoms=(1,))])


def test_empty_separator_is_refused():
    with pytest.raises(ValueError, match="separator"):
        PromptSettings(separator="")
