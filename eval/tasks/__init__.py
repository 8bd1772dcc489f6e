"""lm-eval tasks over local files: `lm_eval --include_path eval/tasks`."""
