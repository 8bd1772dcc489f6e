"""Cleaning: Unicode, citation marks and what they leave behind."""

import re
import unicodedata

import pytest

from data_shards.clean import CITATION, cut_spans, is_dropped_heading, is_narrative, normalise, paragraphs_of, tidy
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
    assert cut_spans(text, spans) == "Kuntz et al. found X and Y."


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
