"""One module per published format: files -> questions."""
