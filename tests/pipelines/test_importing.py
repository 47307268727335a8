"""Probes must be answered while torch imports; timings are in no test, the causes are."""

import gc
import subprocess
import sys

import pytest

from pipelines.importing import undisturbed

LINKED = """
import pipelines.importing as importing
with importing.undisturbed():
    import sys
    assert "torch" not in sys.modules
    linked = "libtorch_cpu.so" in open("/proc/self/maps").read()
    import torch
    torch.ones(2).sum()
print(linked)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the import links the libraries itself")
def test_the_large_library_is_linked_before_python_imports_it() -> None:
    """Linking inside the import would hold the interpreter's lock for a second and more."""
    done = subprocess.run([sys.executable, "-c", LINKED], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


def test_garbage_is_not_collected_meanwhile_and_is_again_afterwards() -> None:
    """A full collection over a framework's objects takes a fifth of a second; leaving it off leaks."""
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_failing_import_turns_collection_on_again() -> None:
    """The worker lives on and answers why it cannot serve."""

    def fail() -> None:
        with undisturbed():
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
