"""Multiple choice and yes/no/maybe: published question sets, through lm-eval."""
