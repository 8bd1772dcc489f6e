"""A row of the fine-tuned tables: train on a task, then score."""
