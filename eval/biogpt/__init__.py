"""BioGPT's tasks: its templates, its definitions, its data files."""
