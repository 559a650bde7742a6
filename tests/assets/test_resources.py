"""What assets are given."""

import subprocess
import sys

import pytest

ALLOCATE = """
import resource
import sys
import torch
from fbmem_core.diffusion.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(2 << 20) for _ in range(10)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt: run it on Linux")
def test_freed_memory_is_kept_and_not_zeroed_again_at_every_step():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ALLOCATE], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 10
