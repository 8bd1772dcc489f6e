"""Which articles are worth training on, as far as one article by itself can tell.

What needs all of them at once (duplicates, PubMed's updates, retractions known from another source) is decided in
`data_shards.duplicates`.
"""

from __future__ import annotations

from data_shards.articles import Article
from data_shards.config import Selection


def drop_reason(article: Article, text: str, selection: Selection) -> str | None:
    """Why an article is not kept, as a short countable reason, or None. `text` is `article.text()`.

    S2ORC articles need a PubMed or PMC id: the paper's filter for biomedical literature.
    """
    if article.source == "s2orc" and not (article.pmid or article.pmcid):
        return "no_pubmed_or_pmc_id"
    if not article.has_body():
        return "no_text"
    if selection.licences is not None and article.licence not in selection.licences:
        return "licence"
    if len(text) < selection.minimum_characters:
        return "too_short"
    return None
