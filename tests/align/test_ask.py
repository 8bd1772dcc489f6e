"""`ask` and `chat` on a real language model: answers, streams, structures from files, and mistakes."""

import io
import json
import subprocess
import sys

import pytest
from rdkit import Chem

from align import ask, chat
from align.model import AlignedModel
from align.prompts import Turn
from align.streamer import AnswerStreamer
from job.errors import InputError
from tests.align.aligned_models import real_proteins, real_smiles, small_model

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def directory(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ask") / "aligned"
    small_model(real_data, seed=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(directory, real_data):
    """The model's own answer, asked without the commands."""
    model = AlignedModel.from_pretrained(directory)

    def ask_model(*turns, tokens=12):
        return model.generate([list(turns)], max_new_tokens=tokens)[0]

    return ask_model


def run(directory, *words, tokens=12):
    ask.main([str(directory), *words, "--device", "cpu", "--max-new-tokens", str(tokens)])


def test_streamed_answer_is_the_models(directory, real_data, capsys, expected):
    smiles = real_smiles(real_data, 1)[0]
    run(directory, "--molecule", smiles, QUESTION)
    answer = capsys.readouterr().out
    assert answer == expected(Turn(QUESTION, None, (smiles,))) + "\n" and len(answer) > 5
    run(directory, QUESTION)
    assert capsys.readouterr().out != answer  # the structure was read


def test_structures_come_from_files_in_order(directory, real_data, capsys, expected, tmp_path):
    molecules, protein = real_smiles(real_data, 2), real_proteins(real_data, 1)[0].rstrip("*")
    writer = Chem.SDWriter(str(tmp_path / "drug.sdf"))
    writer.write(Chem.MolFromSmiles(molecules[0]))
    writer.close()
    (tmp_path / "target.fasta").write_text(f">sp|a chain\n{protein[:60]}\n{protein[60:]}\n")
    files = ["--molecule", str(tmp_path / "drug.sdf"), "--protein", str(tmp_path / "target.fasta")]
    run(directory, *files, "--molecule", molecules[1], "--json", QUESTION)
    found = json.loads(capsys.readouterr().out)
    assert found["proteins"] == [protein] and found["molecules"][1] == molecules[1]
    assert Chem.CanonSmiles(found["molecules"][0]) == Chem.CanonSmiles(molecules[0])
    turn = Turn(QUESTION, None, tuple(found["molecules"]), (protein,))
    assert found["answer"] == expected(turn) and found["question"] == QUESTION


def test_a_cropped_chain_is_told(directory, real_data, capsys):
    limit = AlignedModel.from_pretrained(directory).settings.protein.max_residues
    chain = "".join(real_proteins(real_data, 3)).replace("*", "") * 20
    run(directory, "--protein", chain[: limit + 5], QUESTION)
    assert f"of a chain of {limit + 5:,} residues the model reads the first {limit:,}" in capsys.readouterr().err
    run(directory, "--protein", chain[:limit], QUESTION)
    assert capsys.readouterr().err == ""


def test_question_from_a_pipe(directory, capsys, expected, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    run(directory, "-")
    assert capsys.readouterr().out == expected(Turn(QUESTION)) + "\n"


def test_beams_and_sampling(directory, capsys, real_data):
    def answers(*words):
        run(directory, "--molecule", "CCO", *words, QUESTION)
        return capsys.readouterr().out

    model = AlignedModel.from_pretrained(directory)
    turn = Turn(QUESTION, None, ("CCO",))
    assert answers("--beams", "3") == model.generate([turn], num_beams=3, max_new_tokens=12)[0] + "\n"
    sampling = ("--temperature", "1.5", "--seed")
    assert answers(*sampling, "1") == answers(*sampling, "1") != answers(*sampling, "2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--molecule", "C1CC", QUESTION], "not a molecule"),
        (["--protein", "MK1", QUESTION], "no amino acid"),
        (["--molecule", "none.sdf", QUESTION], "none.sdf: No such file"),
        (["--device", "abacus", QUESTION], "--device abacus"),
        (["--beams", "0", QUESTION], "--beams must be at least 1"),
        (["--top-p", "2", QUESTION], "--top-p"),
        (["--language-model", "/nowhere", QUESTION], "is not at /nowhere"),
        (["--max-new-tokens", "600", QUESTION], "exceed this model's max_length of 512"),
        (["  "], "question is empty"),
    ],
)
def test_mistakes_are_one_sentence(directory, words, message):
    with pytest.raises(InputError, match=message):
        ask.main([str(directory), *words])


def test_commands_from_the_shell(directory, tmp_path):
    """Help and a mistake, as users meet them; neither waits for torch."""

    def align(*words):
        code = "import runpy, sys; sys.argv[0] = 'align'\ntry:\n    runpy.run_module('align', run_name='__main__')\n"
        code += "finally:\n    assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)

    for verb in ("ask", "chat"):
        shown = align(verb, "--help")
        assert shown.returncode == 0 and "--molecule" in shown.stdout and shown.stderr == ""
    wrong = align("ask", str(tmp_path / "nothing"), QUESTION)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == f"error: {tmp_path}/nothing does not exist; give the directory of an aligned model\n"


def converse(directory, monkeypatch, *lines, words=(), tokens=12):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    chat.main([str(directory), "--device", "cpu", "--max-new-tokens", str(tokens), *words])


def test_chat_keeps_turns_and_swaps_structures(directory, real_data, capsys, monkeypatch, expected):
    first, second = real_smiles(real_data, 2)
    lines = [QUESTION, "Why?", "", f"/molecule {second}", "And this?", "/clear", "Why?", "/quit", "never asked"]
    converse(directory, monkeypatch, *lines, words=["--molecule", first])
    found = capsys.readouterr()
    one = Turn(QUESTION, expected(Turn(QUESTION, None, (first,))), (first,))
    two = Turn("Why?", expected(one, Turn("Why?")))
    three = expected(one, two, Turn("And this?", None, (second,)))
    alone = expected(Turn("Why?"))
    assert found.out == f"{one.answer}\n{two.answer}\n{three}\n{alone}\n" and found.err == ""
    assert two.answer != alone  # the turn before it was remembered


def test_chat_survives_mistakes(directory, capsys, monkeypatch, expected):
    converse(directory, monkeypatch, "/molecule C1CC", "/protein", "/molekule C", "/help", QUESTION)
    found = capsys.readouterr()
    assert found.err.count("error:") == 3 and "not a molecule" in found.err and "unknown command /molekule" in found.err
    assert "/clear" in found.out and found.out.endswith(expected(Turn(QUESTION)) + "\n")


def test_an_interrupted_answer_does_not_end_the_conversation(directory, capsys, monkeypatch, expected):
    run, interrupted = chat.answer, []

    def interrupt(*arguments, **options):
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(chat, "answer", interrupt)
    converse(directory, monkeypatch, "Why?", QUESTION)
    found = capsys.readouterr()
    assert found.out == expected(Turn(QUESTION)) + "\n" and "this question is forgotten" in found.err


def test_chat_forgets_the_oldest_turns_when_there_is_no_room(directory, capsys, monkeypatch):
    long = "word " * 55
    converse(directory, monkeypatch, long + "1", long + "2", long + "3", tokens=4)
    found = capsys.readouterr()
    assert found.out.count("\n") == 3 and "oldest turn forgotten" in found.err and "error" not in found.err


def test_structures_wait_for_the_question_that_is_answered(directory, capsys, monkeypatch, real_data, expected):
    """A question that is refused keeps its structures for the next try."""
    converse(directory, monkeypatch, "/molecule CCO", "word " * 600, QUESTION)
    found = capsys.readouterr()
    assert "exceed" in found.err and found.out == expected(Turn(QUESTION, None, ("CCO",))) + "\n"


class Words:
    """Stands for nothing but the arguments that the streamer's base class keeps."""


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["  It is", " a drug. ", "##", "# Human: more"], "It is a drug.\n"),
        (["A # b", " ## c", "##"], "A # b ## c##\n"),
        (["one", "#", "#", "#", "two"], "one\n"),
        (["###"], "\n"),
        (["word ", "  "], "word\n"),
    ],
)
def test_streamer_never_shows_the_stop_string(pieces, shown):
    output = io.StringIO()
    streamer = AnswerStreamer(Words(), ["###"], output)
    for piece in pieces:
        streamer.on_finalized_text(piece)
    streamer.on_finalized_text("", stream_end=True)
    assert output.getvalue() == shown


def test_chat_keeps_structures_of_turns_that_are_forgotten(directory, monkeypatch, capsys):
    from align import chat

    shown = []
    monkeypatch.setattr(chat, "answer", lambda model, turns, options, show: shown.append(turns) or "yes")
    long = "word " * 55
    converse(directory, monkeypatch, long + "1", long + "2", long + "3", tokens=4, words=["--molecule", "CCO"])
    assert "oldest turn forgotten" in capsys.readouterr().err
    assert shown[-1][0].molecules == ("CCO",)
    assert sum(len(turn.molecules) for turn in shown[-1]) == 1
