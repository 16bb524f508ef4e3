"""Sweeps that break runs on purpose and count what held: `python scripts/faults`."""
