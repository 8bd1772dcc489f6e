"""A language model, a molecule encoder and a protein encoder become one model that answers about structures."""
