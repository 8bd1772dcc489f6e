"""Cleaning: Unicode, citation marks and what they leave behind."""

import re
import unicodedata

import pytest

from data_shards.clean import (
    CITATION,
    awaits_name,
    cut_plain_marks,
    cut_spans,
    is_apparatus,
    is_dropped_heading,
    is_narrative,
    normalise,
    paragraphs_of,
    tidy,
    work_name,
)
from data_shards.readers import jsonl, pmc


def test_unicode_of_real_text_survives(real_data):
    """NFC and nothing more: every visible character of 8,495 real abstracts is still there."""
    path = real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz"
    text = "".join(article.text() for article in jsonl.read(path, pytest.fail))
    assert all(text.count(letter) > 50 for letter in "αβγδ≥≤±×μµ°")
    assert unicodedata.is_normalized("NFC", text)
    assert not re.search("[\u200b\ufeff\u00ad\ue000-\uf8ff\u00a0\u2009\u2028]", text)


def test_normalise_damages_nothing():
    assert normalise("10⁵ ½ µM β₂ x²") == "10⁵ ½ µM β₂ x²"
    assert normalise("e\u0301") == "é"
    assert normalise(" a\u00a0b\u2009c\u2028d\r\n\te ") == "a b c d e"
    assert normalise("in\u00advisible\u200b \ufeffand\ue001") == "invisible and"


@pytest.mark.parametrize(
    ("marked", "clean"),
    [
        ("patterns exist [#-#]. Next", "patterns exist. Next"),
        ("effects (#; #) of", "effects of"),
        ("loss (see [#] for review) of", "loss of"),
        ("loss (reviewed in #, #, and #).", "loss."),
        ("shown # and # before", "shown and before"),
        ("the exons (# and this study) or", "the exons (this study) or"),
        ("found (Figure 2; #).", "found (Figure 2)."),
        ("found (e.g., #).", "found."),
        ("cells,#,# which", "cells, which"),
        ("end #.", "end."),
    ],
)
def test_citation_marks_take_their_brackets_along(marked, clean):
    assert tidy(marked.replace("#", CITATION)) == clean


def test_numbers_and_ordinary_brackets_are_left_alone():
    for text in ("F[1,25] = 3.2; p < .05", "Ca(2+) (n = 3), [3H]thymidine", "f(x) > .5 and (a), b", "poisson()"):
        assert tidy(text) == text


def test_spans():
    text = "Kuntz et al. [7] found X (Smith, 2001; Nair, 2002) and Y."
    spans = [(0, 12), (13, 16), (25, 38), (39, 50), (40, 45), (55, 900), (5, 5), (-3, -1)]
    assert cut_spans(text, [(*span, "") for span in spans]) == "Kuntz et al. found X and Y."


def test_span_that_is_a_word_of_the_sentence():
    text = "We use the model of [3] and [4, Theorem 2] (see [5] for details), as in [6-8], and x in [0, 1]."
    names = {"3": "Hu (2003)", "4": "Best et al. (2005)", "5": "Lee (2004)", "6": "Ray (1999)", "8": "Fox (2001)"}
    spans = [(text.index(number), text.index(number) + 1, name) for number, name in names.items()]
    assert cut_spans(text, spans) == (
        "We use the model of Hu (2003) and [Theorem 2] (see Lee (2004) for details), as in Ray (1999), Fox (2001) and "
        "others, and x in [0, 1]."
    )


def test_brackets_that_are_no_citations_stay():
    for text in (
        "benzo[2,3-b]pyridine [2,3-b] and [1, 5] diazepine",
        "a probability in [0, 1] and x = [7] here",
        "he writed [sic] so, [Ca2+] rose, cucurbit[7]uril, F[1,25] > 24.6",
        "in equation [3], step [2]. Values of [3] are",
    ):
        assert cut_plain_marks(text) == text and tidy(text) == text
    assert cut_plain_marks("increases in DOC [45] and iron [46], as (said) [7].") == (
        "increases in DOC and iron, as (said)."
    )


@pytest.mark.parametrize(
    ("before", "is_word"),
    [
        ("as described in ", True),
        ("according to [", True),
        ("(see ", True),
        ("the method of (", True),
        ("with the exception of ref. [", True),
        ("was resistant to ", False),
        ("patterns exist [", False),
        ("the origin ", False),
    ],
)
def test_where_a_mark_is_a_word_of_its_sentence(before, is_word):
    assert awaits_name(before) is is_word


def test_names_of_works():
    assert work_name(["Hu", "Feng"], 2003) == "Hu and Feng (2003)"
    assert work_name(["Hu", "Feng", "Li"], "2003") == "Hu et al. (2003)"
    assert work_name([], 2003) == work_name(["Hu"], None) == work_name(["Anonymous"], 2003) == ""


def test_names_within_the_sentence():
    for before in ("as shown by ", "1) first, 2) then ", "in (a) and (b), ", "of Zn(II) by "):
        assert is_narrative("Menezes et al.", before)
    for before in ("as shown (", "as shown [see ", "in Zn(II) (as ", "(Marques, 2010; ", "(in a) way, by "[:4]):
        assert not is_narrative("Menezes et al.", before)
    assert not is_narrative("12", "as shown by ")


def test_citation_cleaning_is_linear():
    """Thousands of unclosed brackets and marks must not take a regular expression forever."""
    text = ("(see also " + CITATION + "; e.g., [") * 20_000
    assert CITATION not in tidy(text)


def test_paragraphs():
    assert paragraphs_of("one\ntwo\n\nthree") == ("one two", "three")
    assert paragraphs_of("one\ntwo\r\n three ") == ("one", "two", "three")
    assert paragraphs_of(" \n ") == ()


def test_dropped_headings(real_data):
    for heading in ("Authors' contributions", "5. Competing interests", "Supporting Information", "References:"):
        assert is_dropped_heading(heading)
    for heading in ("Methods", "Funding mechanisms in health care", "Reference values", "Tables of integrals"):
        assert not is_dropped_heading(heading)
    headings = [
        section.heading
        for article in pmc.read(real_data / "jats_fulltext" / "plos.open.tar.gz", pytest.fail)
        for section in article.sections
    ]
    assert "Materials and Methods" in headings and not any(is_dropped_heading(heading) for heading in headings)


def test_closing_paragraphs_about_the_authors(real_data):
    for paragraph in (
        "PD, IM, and TG were responsible for the conception and design of the study, and approved the final version.",
        "The authors declare that they have no competing interests.",
        "We thank Ann Lee for help.",
        "This work was supported by the NIH.",
    ):
        assert is_apparatus(paragraph)
    bodies = [
        paragraph
        for path in sorted((real_data / "jats_fulltext").glob("*.tar.gz"))
        for article in pmc.read(path, pytest.fail)
        for section in article.sections
        if section.heading.lower() in ("results", "discussion", "introduction", "methods", "background")
        for paragraph in section.paragraphs
    ]
    assert len(bodies) > 1000
    assert [paragraph for paragraph in bodies if is_apparatus(paragraph)] == []
