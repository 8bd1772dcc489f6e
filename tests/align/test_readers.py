"""Readers of published files, on real rows and on the mistakes that real files hold."""

import csv
import gzip
import json
import re
from collections import Counter

import pytest
from rdkit import Chem

from align.questions import FAMILY, FUNCTION, LOCATION, MOLECULE_QUESTION, NAMES
from align.readers import chebi20, molecule_questions, pubchem, uniprot, uniprotqa
from job.errors import InputError
from tests.align import entries


def read(reader, path, *more):
    rejects = []
    return [row.question for row in reader(path, rejects.append, *more)], rejects


def by_id(questions):
    assert len({question.id for question in questions}) == len(questions)
    return {question.id: question for question in questions}


# UniProt


def test_flat_file_and_xml_of_the_same_entry_give_the_same_questions(tmp_path):
    (tmp_path / "entries.dat").write_text(entries.FLAT)
    (tmp_path / "entries.xml").write_text(entries.XML)
    flat, xml = (by_id(read(uniprot.read, tmp_path / name)[0]) for name in ("entries.dat", "entries.xml"))
    assert flat == xml
    assert {identifier: question.answer for identifier, question in flat.items()} == {
        "uniprot:Q00001:function": "Phosphorylates the alpha- and beta-subunits of a 5-hydroxytryptamine receptor. "
        "Acts in the MAP kinase pathway.",
        "uniprot:Q00001:names": "Example kinase 1; Protein example",
        "uniprot:Q00001:family": "Belongs to the protein kinase superfamily. Ser/Thr protein kinase family.",
        "uniprot:Q00001:location": "Cell membrane; Lipid-anchor, GPI-anchor. Cytoplasm.",
    }


@pytest.mark.real
def test_answers_agree_with_an_independent_view_of_the_same_entries(real_data):
    """`uniprot_entries` was derived by others' code from the same files."""
    folder = real_data / "uniprot"
    found = {}
    for name in ("uniprot_sprot.open.dat.gz", "uniprot_sprot.open.xml.gz"):
        questions, rejects = read(uniprot.read, folder / name)
        assert not rejects
        found |= by_id(questions)
    compared = Counter()
    for line in (folder / "uniprot_entries.open.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        entry = json.loads(line)
        if entry["format"] == "json":
            continue
        names = found[f"uniprot:{entry['accession']}:names"]
        assert names.proteins == (entry["sequence"],)
        assert names.answer.startswith(entry["names"][0])
        family = found.get(f"uniprot:{entry['accession']}:family")
        assert (family is not None) == any("elongs to the" in text for text in entry["family"])
        if family is not None:
            assert _letters(family.answer) in _letters(" ".join(entry["family"]))
            compared["family"] += 1
        function = found.get(f"uniprot:{entry['accession']}:function")
        assert (function is not None) == bool(entry["function"])
        location = found.get(f"uniprot:{entry['accession']}:location")
        assert (location is not None) == bool(entry["subcellular_location"])
        if location is not None:
            place = re.sub(r"^\[[^\]]*\]: ?", "", entry["subcellular_location"][0])
            assert _letters(place)[:6] == _letters(location.answer)[:6]
            compared["location"] += 1
    assert compared["family"] > 200 and compared["location"] > 70


def _letters(text):
    return re.sub(r"\W", "", re.sub(r"\((?:By similarity|Probable|Potential)\)", "", text)).lower()


@pytest.mark.real
def test_no_evidence_reference_or_line_break_is_left(real_data):
    for name in ("uniprot_sprot.open.dat.gz", "uniprot_sprot.open.xml.gz"):
        for question in read(uniprot.read, real_data / "uniprot" / name)[0]:
            assert not re.search(r"ECO:|\(PubMed:|\(By similarity\)|  |\n| [.,;]", question.answer), question
            assert not re.search(r"\w- (?!and|or|to|in\b)\w", question.answer), question
            assert question.question in (FUNCTION, NAMES, FAMILY, LOCATION)
    answers = by_id(read(uniprot.read, real_data / "uniprot" / "uniprot_sprot.open.dat.gz")[0])
    assert answers["uniprot:P15711:location"].answer == "Cell membrane; Lipid-anchor, GPI-anchor."
    assert answers["uniprot:P15711:names"].answer == "104 kDa microneme/rhoptry antigen; p104"
    assert "chain" not in answers["uniprot:P15455:names"].answer, "names of parts are not names of the protein"


def test_blanks_that_are_meant_stay():
    assert uniprot.clean("the alpha- and beta-chain, GPI- anchor (PubMed:1, PubMed:2). {ECO:1|PubMed:3}.") == (
        "the alpha- and beta-chain, GPI-anchor."
    )


@pytest.mark.real
def test_damaged_uniprot_files(real_data, tmp_path):
    flat = gzip.decompress((real_data / "uniprot" / "uniprot_sprot.open.dat.gz").read_bytes())
    (tmp_path / "cut.dat").write_bytes(flat[:20_000])
    with pytest.raises(InputError, match=r"cut\.dat ends inside the entry that starts at line \d+"):
        read(uniprot.read, tmp_path / "cut.dat")
    broken = flat.replace(b"ID   12S4_ARATH", b"XX   12S4_ARATH", 1) if b"12S4_ARATH" in flat else b"XX\n//\n" + flat
    (tmp_path / "broken.dat").write_bytes(broken)
    kept, rejects = read(uniprot.read, tmp_path / "broken.dat")
    assert (
        len(rejects) == 1 and rejects[0].reason == "malformed_entry" and rejects[0].source_position.startswith("line")
    )
    assert len(kept) > 300
    xml = gzip.decompress((real_data / "uniprot" / "uniprot_sprot.open.xml.gz").read_bytes())
    (tmp_path / "cut.xml").write_bytes(xml[:-900])
    with pytest.raises(InputError, match=r"cut\.xml is damaged after entry \d"):
        read(uniprot.read, tmp_path / "cut.xml")
    (tmp_path / "other.xml").write_text("<html/>")
    with pytest.raises(InputError, match="no UniProt <entry>"):
        read(uniprot.read, tmp_path / "other.xml")


def test_entities_of_an_xml_file_are_not_expanded(tmp_path):
    (tmp_path / "secret").write_text("password")
    xml = entries.XML.partition("?>")[2]
    declared = f'<!DOCTYPE x [<!ENTITY leak SYSTEM "file://{tmp_path / "secret"}">]>'
    (tmp_path / "evil.xml").write_text(declared + re.sub(r"<fullName([^>]*)>", r"<fullName\1>&leak;", xml, count=1))
    questions, _ = read(uniprot.read, tmp_path / "evil.xml")
    assert questions and not any("password" in question.answer for question in questions)


# Published JSON


@pytest.mark.real
def test_published_uniprotqa_json(real_data, tmp_path):
    entries = [
        json.loads(line)
        for line in (real_data / "uniprot" / "uniprot_entries.open.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    content = {
        entry["accession"]: {"sequence": entry["sequence"], "data": [[FUNCTION, text] for text in entry["function"]]}
        for entry in entries
    }
    content["P1"] = {"sequence": "MKV", "data": [[FAMILY, "kinase"], [FUNCTION], ["Odd?", 3]]}
    content["P2"] = {"data": []}
    path = tmp_path / "train.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    questions, rejects = read(uniprotqa.read, path)
    found = by_id(questions)
    assert len(found) == sum(len(entry["function"]) for entry in entries) + 2
    assert found["uniprot:P1:family"].answer == "kinase" and found["uniprot:P1:family"].proteins == ("MKV",)
    assert [(reject.source_position, reject.reason) for reject in rejects] == [
        ("P1, question 1", "malformed_record"), ("P2", "malformed_record"),
    ]  # fmt: skip
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds a JSON list, but an object"):
        read(uniprotqa.read, path)


@pytest.mark.real
def test_chembl_qa_answers_may_be_numbers(real_data):
    path = real_data / "chembl_qa" / "ChEMBL_QA_open.json.gz"
    questions, rejects = read(molecule_questions.read_chembl_qa, path)
    content = json.loads(gzip.decompress(path.read_bytes()))
    pairs = [(smiles, q, str(a)) for smiles, data in content.items() for q, a in data]
    assert [(q.molecules[0], q.question, q.answer) for q in questions] == [
        (smiles, q.strip(), a.strip()) for smiles, q, a in pairs
    ]
    assert not rejects and any(isinstance(a, float) for data in content.values() for _, a in data)


def test_json_rows_name_what_is_wrong(tmp_path):
    rows = [
        '{"smiles": ["CCO", "C"], "question": "Q?", "answer": 3}',
        '{"sequence": "MKV", "question": "Q?", "answer": "A"}',
        "{broken",
        '"text"',
        '{"question": "Q?", "answer": "A"}',
        '{"smiles": "C", "question": "Q?", "answer": true}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    questions, rejects = read(molecule_questions.read_rows, tmp_path / "rows.jsonl")
    assert [(q.molecules, q.proteins, q.answer) for q in questions] == [(("CCO", "C"), (), "3"), ((), ("MKV",), "A")]
    assert [(r.source_position, r.reason) for r in rejects] == [
        ("line 3", "malformed_json"), ("line 4", "malformed_record"), ("line 5", "malformed_record"),
        ("line 6", "malformed_record"),
    ]  # fmt: skip


# ChEBI-20 and PubChem


@pytest.mark.real
def test_chebi20_quotation_marks_are_text(real_data, tmp_path):
    path = real_data / "chebi20" / "train_open.txt"
    questions, rejects = read(chebi20.read, path)
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
    assert not rejects and len(questions) == len(lines) == 4601
    for question, line in zip(questions, lines):
        cid, smiles, text = line.split("\t")
        assert (question.id, question.molecules, question.answer) == (f"chebi20:{cid}", (smiles,), text.strip())
    bad = tmp_path / "bad.txt"
    bad.write_text('CID\tSMILES\tdescription\n1\tC\t"open quote\n2\tC\n3\tCC\tlast\n')
    questions, rejects = read(chebi20.read, bad)
    assert [question.answer for question in questions] == ['"open quote', "last"]
    assert rejects[0].source_position == "line 3" and rejects[0].detail == "2 fields, but the header has 3"
    bad.write_text("CID\tdescription\n1\tx\n")
    with pytest.raises(InputError, match="has no column or key 'smiles'; it has CID, description"):
        read(chebi20.read, bad)


@pytest.fixture
def compounds(real_data):
    path = real_data / "pubchem_desc" / "pcdes.open.jsonl"
    return path, [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.real
def test_pubchem_from_jsonl_csv_and_sdf_agree(compounds, tmp_path):
    path, rows = compounds
    rows = rows[:60]
    expected = [(str(row["CID"]), row["SMILES"], row["description"].strip()) for row in rows]
    with open(tmp_path / "c.csv", "w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["CID", "IsomericSMILES", "Description"])
        table.writerows(expected)
    with Chem.SDWriter(str(tmp_path / "c.sdf")) as writer:
        for cid, smiles, _ in expected:
            molecule = Chem.MolFromSmiles(smiles)
            molecule.SetProp("PUBCHEM_COMPOUND_CID", cid)
            molecule.SetProp("PUBCHEM_SMILES", smiles)
            writer.write(molecule)
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"CID": c, "text": t}) for c, _, t in expected))
    rejects = []
    sources = ([path], [tmp_path / "c.csv"], [tmp_path / "texts.jsonl", tmp_path / "c.sdf"])
    results = [[row.question for _, row in pubchem.read(paths, rejects.append)][:60] for paths in sources]
    assert not rejects
    assert results[0] == results[1] == results[2]
    assert [(q.id.split(":")[1], q.molecules[0], q.answer) for q in results[0]] == expected
    assert {question.question for question in results[0]} == {MOLECULE_QUESTION}


@pytest.mark.real
def test_pubchem_rows_without_a_structure_and_broken_records(compounds, tmp_path):
    _, rows = compounds
    (tmp_path / "t.jsonl").write_text('{"CID": 1, "text": "Something"}\n{"text": "No id"}\n')
    molecule = Chem.MolFromSmiles(rows[0]["SMILES"])
    molecule.SetProp("PUBCHEM_COMPOUND_CID", "7")
    molecule.SetProp("PUBCHEM_DESCRIPTION", "An acid.")
    good = Chem.MolToMolBlock(molecule) + "> <PUBCHEM_COMPOUND_CID>\n7\n\n> <PUBCHEM_DESCRIPTION>\nAn acid.\n\n$$$$\n"
    (tmp_path / "s.sdf").write_text("\nx\n\n 1 garbage\n$$$$\n" + good)
    rejects = []
    found = list(pubchem.read([tmp_path / "t.jsonl", tmp_path / "s.sdf"], rejects.append))
    questions = [row.question for _, row in found]
    assert [(file, row.position) for file, row in found] == [("s.sdf", "record 2")]
    assert [question.answer for question in questions] == ["An acid."]
    assert Chem.CanonSmiles(questions[0].molecules[0]) == Chem.CanonSmiles(rows[0]["SMILES"])
    assert sorted(reject.reason for reject in rejects) == ["invalid molecule", "no_cid", "no_structure"]
    [detail] = [reject.detail for reject in rejects if reject.reason == "invalid molecule"]
    assert re.fullmatch(r"[A-Z].*\(RDKit\)", detail)  # no clock time: a second build gives the same bytes
    (tmp_path / "s.sdf").write_text(good + "half a record")
    with pytest.raises(InputError, match="ends inside record 2"):
        list(pubchem.read([tmp_path / "s.sdf"], rejects.append))


@pytest.mark.real
def test_own_names_are_hidden_in_real_descriptions(compounds):
    path, _ = compounds
    plain = [row.question for _, row in pubchem.read([path], [].append)]
    hidden = [row.question for _, row in pubchem.read([path], [].append, replace_names=True)]
    assert [question.id for question in plain] == [question.id for question in hidden]
    begins = sum(question.answer.startswith("This molecule ") for question in hidden)
    assert begins > 0.9 * len(hidden)
    first = next(question for question in hidden if ":49:" in question.id)
    assert first.answer.startswith("This molecule is a 2-oxo monocarboxylic acid")


def test_names_inside_words_and_generic_subjects_stay():
    assert pubchem.hide_name("Aspirin is an acid. Aspirin inhibits; non-aspirin drugs and aspirins do not.") == (
        "This molecule is an acid. This molecule inhibits; non-aspirin drugs and aspirins do not."
    )
    assert pubchem.hide_name("The molecule is a steroid.") == "The molecule is a steroid."
    assert pubchem.hide_name("It treats pain; ASA is sold.", ["ASA"]) == "It treats pain; this molecule is sold."
