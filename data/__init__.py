"""Corpora, tokenizers and batches as numpy arrays, independent of JAX and of the model."""
