"""Small aligned models around a real trained language model, and questions about real structures for them."""

import csv
import gzip
import json
from pathlib import Path

import torch

from align.esm import ProteinBatch, create_protein_encoder
from align.gnn import MoleculeEncoder, collate_graphs
from align.language_model import load_language_model, load_tokenizer
from align.model import AlignedModel
from align.molecules import featurise
from align.prompts import Turn
from align.proteins import tokenise
from align.questions import Question
from align.settings import AdapterSettings, AlignedSettings, MoleculeSettings, PromptSettings, ProteinSettings

SYSTEM = "Answer. "  # the language model reads 512 tokens only


def stories(real_data: Path) -> Path:
    return real_data / "stories260K" / "hf"


def small_settings(tokens="each", projection="linear", number=3, system=SYSTEM, max_length=512):
    adapter = AdapterSettings(tokens, number, projection)
    return AlignedSettings(
        MoleculeSettings(layers=2, width=24, adapter=adapter),
        ProteinSettings(max_residues=60, adapter=adapter),
        PromptSettings(system=system),
        max_length,
    )


def small_model(real_data, settings=None, registered=False, dtype=torch.float32, seed=0):
    settings = settings or small_settings()
    torch.manual_seed(seed)
    molecule_encoder = MoleculeEncoder(layers=2, width=24)
    molecule_encoder.batch_norm_mode = "fixed"
    directory = stories(real_data)
    return AlignedModel(
        load_language_model(directory, dtype),
        load_tokenizer(directory),
        settings,
        molecule_encoder,
        create_protein_encoder(2, 32, 4, seed=seed).to(dtype),
        register_language_model=registered,
        language_model_directory=directory,
        seed=seed,
    )


def real_smiles(real_data, count, longest=40):
    """Real molecules, as different as the file has them."""
    with open(real_data / "chebi20" / "test_open.txt", encoding="utf-8", newline="") as handle:
        rows = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        found = [row["SMILES"] for row in rows if len(row["SMILES"]) <= longest]
    return found[:count]


def real_proteins(real_data, count):
    with gzip.open(real_data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt", encoding="utf-8") as handle:
        return [json.loads(next(handle))["sequence"] for _ in range(count)]


def mixed_questions(real_data):
    """Rows with one structure, several, both kinds, and none, of unlike length."""
    molecules, proteins = real_smiles(real_data, 5), real_proteins(real_data, 3)
    return [
        Question("a", "What is it?", "It is a small molecule.", (molecules[0],)),
        Question("b", "Hello there, how are you today?", "Well."),
        Question("c", "Do they bind?", "They do bind, once upon a time.", molecules[1:3], (proteins[0],)),
        Question("d", "Which is larger?", "The second.", (), tuple(proteins[1:3])),
        Question("e", "And this?", "No.", tuple(molecules[3:5])),
    ]


def asked(questions):
    return [[Turn.asking(question)] for question in questions]


def make_batch(model, questions, side="right"):
    return model.encoding.collate([model.encoding.example(question) for question in questions], side)


@torch.no_grad()
def assembled_by_hand(model, question):
    """Embeddings [T, hidden] of one row, piece by piece: text, one structure at a time, text."""
    example = model.encoding.example(question)
    parts = []
    molecules = [featurise(smiles) for smiles in question.molecules]
    proteins = [tokenise(sequence, model.settings.protein.max_residues) for sequence in question.proteins]
    vectors = []
    for graph in molecules:
        batch = collate_graphs([graph])
        vectors.append(model.molecule_adapter(model.molecule_encoder(batch), batch.lengths))
    for chain in proteins:
        ids = torch.from_numpy(chain)
        batch = ProteinBatch(ids, (len(ids),))
        vectors.append(model.protein_adapter(model.protein_encoder(batch), batch.lengths))
    place = 0
    words = model.language_model.get_input_embeddings().weight
    while place < len(example.ids):
        if example.ids[place] >= 0:
            parts.append(words[example.ids[place]][None])
            place += 1
        else:
            vector = vectors.pop(0)
            assert (example.ids[place : place + len(vector)] == example.ids[place]).all()
            parts.append(vector)
            place += len(vector)
    assert not vectors
    return torch.cat(parts)
