"""Synthetic tasks whose best possible loss is known."""
