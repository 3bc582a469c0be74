"""What a process that computes is set up with."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from comkd_ray import process

FAULTS = """
import resource, sys, torch
from comkd_ray import process

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.zeros(6 * 2**20) for _ in range(4)]  # 24 MiB each, which every glibc may keep
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
kept = process.keep_freed_memory()
faults()
print(plain, faults() if kept else -1)
"""


def test_threads_are_what_was_asked_for() -> None:
    before = torch.get_num_threads()
    process.set_up(1)
    assert torch.get_num_threads() == 1
    process.set_up()
    assert torch.get_num_threads() == 1
    process.set_up(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_was_freed_is_not_mapped_again() -> None:
    """Counted in page faults, in a process of its own: the setting cannot be taken back."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    if kept < 0:
        pytest.skip("malloc is not glibc's")
    assert kept < plain / 10
