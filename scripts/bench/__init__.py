"""A speed contest between this project and other ways to train the same transformer: `python scripts/bench`."""
