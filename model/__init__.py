"""A small residual transformer in Flax NNX.

Axis legend, used in every annotation and as a suffix on locals whose axes differ:

    B  batch (sequences)          H  query heads
    T  tokens of a sequence       G  key/value heads (G divides H)
    N  B * T, tokens flattened    K  width of a head
    D  width of the stream        F  width of the MLP's hidden layer
    L  layers (blocks)            V  vocabulary

Activations have shape [N, D], not [B, T, D]: on XLA:CPU the weight gradients of [B, T, D] activations are fused into
transposed copies, which takes half of the step (docs/benchmarks.md).
"""
