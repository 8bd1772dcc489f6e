"""Small models of the families we read, made and saved by transformers, with weights that make every part matter."""

import torch
import transformers

SEQUENCE = 32

SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    vocab_size=200,
    tie_word_embeddings=False,
    initializer_range=0.1,
    attn_implementation="eager",
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Multi-head attention with a vocabulary that is a multiple of 128 (no padding), grouped-query attention with one that
# is not, tied embeddings with scaled rotary frequencies, biases, and a head size that is not hidden size / heads.
MODELS = {
    "llama-mha": ("Llama", dict(num_key_value_heads=4, vocab_size=256)),
    "llama-gqa": ("Llama", dict()),
    "llama3-tied": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE, num_hidden_layers=4)),
    "qwen2": ("Qwen2", dict(vocab_size=333, num_hidden_layers=4)),
    "mistral": ("Mistral", dict(head_dim=16, sliding_window=None)),
}


def make_model(name, dtype=torch.float32, **changes):
    """A transformers model of `MODELS` with random weights, norms and biases included."""
    family, sizes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**(SIZES | sizes | changes))
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model.to(dtype).eval()


def save_model(name, directory, dtype=torch.float32, max_shard_size="5GB", **changes):
    """Save it as users do; returns the model."""
    model = make_model(name, dtype, **changes)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model


def reference(model, batch=2):
    """Random tokens [batch, SEQUENCE + 1], the model's logits for them, and its summed cross-entropy."""
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(0, model.config.vocab_size, (batch, SEQUENCE + 1), generator=generator)
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    return tokens, logits, loss
