"""Shared runs of words, against sets of tuples."""

import re
import unicodedata

import numpy as np
import pytest

from data_shards.ngrams import NgramIndex, words
from data_shards.shards import ShardSet
from data_shards.tokens import load


def plain_ngrams(text, n):
    found = re.findall(r"\w+", unicodedata.normalize("NFKC", text.lower()))
    return {tuple(found[start : start + n]) for start in range(len(found) - n + 1)}


@pytest.mark.parametrize("n", [1, 5, 13])
def test_finds_what_sets_of_tuples_find_on_real_articles(n, inputs):
    shards, tokenizer = ShardSet(inputs.shards), load(inputs.hugging_face)
    texts = [tokenizer.decode(shards[number][:400]) for number in range(24)]
    wanted, searched = texts[:8], texts[4:]
    index = NgramIndex(wanted, n)
    assert index.count == len(set.union(*(plain_ngrams(text, n) for text in wanted)))
    overlaps = 0
    for text in searched:
        found = np.zeros(index.count, bool)
        found[index.find(text)] = True
        for place, other in enumerate(wanted):
            shared = len(plain_ngrams(text, n) & plain_ngrams(other, n))
            assert found[index.of_text[place]].sum() == shared
            overlaps += shared > 0
    assert overlaps >= 4


def test_case_punctuation_and_forms_of_letters_make_no_difference():
    index = NgramIndex(["The effect of TNF-α (10 mg) on ﬁbrosis: a study."], 5)
    assert len(index.find("... the EFFECT of “tnf α”, 10 mg; on fibrosis — a\nstudy")) == index.count == 7
    assert len(index.find("the effect of tnf beta 10 mg on fibrosis in a study")) == 0
    assert words("H₂O, naïve!") == ["h2o", "naïve"]


def test_a_short_text_has_no_ngrams_and_nothing_is_found_in_one():
    index = NgramIndex(["only four words here", "", "five words are here now"], 5)
    assert [len(numbers) for numbers in index.of_text] == [0, 0, 1]
    assert len(index.find("words here now")) == len(index.find("")) == 0
    assert len(NgramIndex([], 5).find("five words are here now")) == 0
    with pytest.raises(ValueError, match="one or more words"):
        NgramIndex(["a"], 0)
