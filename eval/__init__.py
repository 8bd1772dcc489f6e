"""Stage 4: a model directory becomes a table of results whose every number can be traced."""
