"""`python -m train` is `deltaflow`."""

from train.cli import script

if __name__ == "__main__":
    script()
