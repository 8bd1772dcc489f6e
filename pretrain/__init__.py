"""Stage 2: token shards and a Hugging Face model become a continued-pretraining run."""
