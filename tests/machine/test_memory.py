"""Memory that is freed is used again, not fetched anew from the kernel."""

import ctypes
import resource
import subprocess
import sys

import pytest

from litcifar.machine import memory

BLOCK = 64 << 20  # bytes; no dynamic threshold of glibc keeps such a block


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc's malloc")
@pytest.mark.parametrize("kept", [True, False])
def test_a_large_block_is_used_again_without_new_pages(kept: bool) -> None:
    code = f"""if True:
        import resource, torch
        from litcifar.machine import memory
        if {kept}:
            memory.keep_freed()
        for _ in range(40):  # an aligned block wants more than it leaves: it takes some to find a place for good
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones({BLOCK}, dtype=torch.uint8)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    faults = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    pages = BLOCK // resource.getpagesize()
    assert (faults < pages / 10) == kept


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    memory.keep_freed()
