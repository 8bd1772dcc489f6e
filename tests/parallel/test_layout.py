"""Layouts that cannot work are refused by the number that does not divide; the others cut the layers evenly."""

import pytest

from job.errors import InputError
from parallel.layout import Layout
from parallel.shape import shape_of
from tests.parallel.models import MODELS, make_model

SHAPE = shape_of(
    dict(
        model_type="llama",
        hidden_size=96,
        intermediate_size=250,
        num_hidden_layers=5,
        num_attention_heads=12,
        num_key_value_heads=6,
        vocab_size=32001,
        max_position_embeddings=2048,
    ),
    "config.json",
)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (dict(tensor=5), "tensor 5 does not divide the model's 12 attention heads"),
        (dict(tensor=4), "tensor 4 does not divide the model's 6 key/value heads"),
        (dict(tensor=3), "tensor 3 does not divide the model's 250 feed-forward width"),
        (dict(pipeline=6), "6 stages, but the model has only 5 layers"),
        (dict(pipeline=3, virtual_pipeline=2), "pipeline 3 x virtual_pipeline 2 = 6 stages, .* only 5 layers"),
        (dict(virtual_pipeline=2), "virtual_pipeline needs parallel.pipeline of at least 2"),
        (dict(context=8), "context 8: twice that does not divide the sequence length 1000"),
        (dict(pipeline=0), "parallel.pipeline must be at least 1, not 0"),
    ],
    ids=str,
)
def test_refusals_name_the_number(layout, message):
    with pytest.raises(InputError, match=message):
        Layout(**layout).check(SHAPE, sequence_length=1000)


def test_sequence_parallelism_needs_a_sequence_that_divides():
    Layout(tensor=2, sequence_parallel=False).check(SHAPE, sequence_length=33)
    with pytest.raises(InputError, match="tensor 2 with sequence parallelism does not divide the sequence length 33"):
        Layout(tensor=2).check(SHAPE, sequence_length=33)


def test_world_and_batch_refusals_name_the_number():
    layout = Layout(tensor=2, pipeline=2, virtual_pipeline=2)
    assert layout.data_parallel(8) == 2
    with pytest.raises(InputError, match="tensor 2 x pipeline 2 x context 1 = 4 does not divide the 6 processes"):
        layout.data_parallel(6)
    assert layout.micro_batches(16, 2, 8) == 4
    with pytest.raises(
        InputError, match=r"global_batch 18 is not a multiple of train\.micro_batch 2 x data parallel 2"
    ):
        layout.micro_batches(18, 2, 8)
    with pytest.raises(InputError, match="pipeline 2 does not divide the 3 micro-batches"):
        layout.micro_batches(12, 2, 8)


def test_stages_are_as_even_as_can_be():
    assert Layout(pipeline=2).stages(5) == [3, 2]
    assert Layout(pipeline=2, virtual_pipeline=2).stages(8) == [2, 2, 2, 2]
    assert Layout(pipeline=4).stages(6) == [2, 2, 1, 1]


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_as_transformers_counts_them(name):
    model = make_model(name)
    shape = shape_of(model.config.to_dict(), name)
    assert shape.parameters == model.num_parameters()
    assert shape.padded_vocabulary >= shape.vocabulary and shape.padded_vocabulary % 128 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="gpt2"), "model_type 'gpt2' is not supported; supported are llama, mistral, qwen2"),
        (dict(model_type="mistral", sliding_window=4096), "sliding_window 4096 is not supported"),
        (dict(mlp_bias=True), "mlp_bias is not supported"),
        (dict(attention_bias=True), "attention_bias of a Llama is not supported"),
        (dict(hidden_act="gelu"), "hidden_act 'gelu' is not supported"),
        (dict(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_type 'yarn' is not supported"),
        (dict(hidden_size=None), "hidden_size"),
    ],
    ids=str,
)
def test_configs_of_other_architectures_are_refused(change, message):
    config = dict(
        model_type="llama",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=300,
        max_position_embeddings=64,
    )
    shape_of(config, "config.json")
    config = {key: value for key, value in (config | change).items() if value is not None}
    with pytest.raises(InputError, match=rf"^config\.json: .*{message}"):
        shape_of(config, "config.json")
