"""`python -m train`, the same as `deltaflow`."""

from .cli import script

if __name__ == "__main__":
    script()
