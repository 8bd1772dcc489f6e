"""One model over many devices: mesh, model building, HF and Megatron weights, distributed checkpoints."""
