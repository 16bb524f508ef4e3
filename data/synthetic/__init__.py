"""Synthetic tasks whose ideal predictor is known."""
