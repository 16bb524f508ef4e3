"""Corpora, tokenizers and batches as numpy arrays. Nothing here imports JAX, and nothing here knows the model."""
