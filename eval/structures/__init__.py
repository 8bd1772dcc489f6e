"""Questions about molecules and proteins, molecules for descriptions, retrieval."""
