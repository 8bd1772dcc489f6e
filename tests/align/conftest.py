"""Inputs of alignment runs, made once per session."""

import pytest


@pytest.fixture(scope="session")
def align_inputs(real_data, tmp_path_factory):
    """Real questions as shards, a real language model, a real molecule encoder, a random protein encoder."""
    from tests.align.runs import make_align_inputs

    return make_align_inputs(real_data, tmp_path_factory.mktemp("align-inputs"))
