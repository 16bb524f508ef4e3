"""`python -m train` is `deltaflow`."""

from .cli import script

if __name__ == "__main__":
    script()
