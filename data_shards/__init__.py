"""Stage 1: articles become clean, unique, tokenised shards; and the order in which training reads them."""
