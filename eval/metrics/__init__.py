"""How near texts and molecules are to the right ones."""
