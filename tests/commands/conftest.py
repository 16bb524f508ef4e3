"""The command line, in this process."""

import pytest

from train.cli import main


@pytest.fixture
def call(capsys):
    """(exit code, stdout, stderr) of `deltaflow ARGUMENTS`; anything raised but SystemExit is a failed test."""

    def called(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = error.code if isinstance(error.code, int) else 1
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return called
