"""Settings of a process. (Whose process a lock names: tests/store/test_lock.py.)"""

import platform
import subprocess
import sys

import pytest

# In a process of its own, since the settings last: page faults of a block of 64 MB, asked for and freed three times.
FAULTS = """
import ctypes, resource, sys
from train.device.process import trim, tune

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**26)))
    libc.memset(block, 1, ctypes.c_size_t(2**26))
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "tuned":
    tune()
print(faults(), faults(), faults(), trim() or faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize("tuned", [True, False])
def test_a_large_block_of_memory_is_kept_for_the_next(tuned):
    """As XLA:CPU asks for one at every call of a program: only the first is new to the kernel, which zeroes pages."""
    command = [sys.executable, "-c", FAULTS, "tuned" if tuned else "as it is"]
    faults = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    first, *later, trimmed = map(int, faults.split())
    assert first >= 16  # however large the pages are
    assert max(later) <= 2 if tuned else min(later) > first / 2
    assert trimmed > first / 2  # the next group's memory is asked for


# Names the two functions as they are called.
ORDER = """
import sys
from train import cli

def note(frame, event, _):
    if event == "call" and frame.f_code in (cli.tune.__code__, cli.main.__code__):
        print(frame.f_code.co_name)

sys.setprofile(note)
cli.script()
"""


def test_the_command_is_tuned_before_it_does_anything():
    command = [sys.executable, "-c", ORDER, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert done[:2] == ["tune", "main"] and done[2].startswith("deltaflow ") and len(done) == 3
