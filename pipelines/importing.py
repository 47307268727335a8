"""Imports torch and what stands on it without stopping the threads that answer probes meanwhile.

Three things in a plain import hold the interpreter's lock for long: the loader linking libtorch, full
garbage collections over hundreds of thousands of new objects, and executing modules. The first two
are avoided here; the third yields every few milliseconds by itself.
"""

import ctypes
import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the order in which torch links them itself, the first with its symbols for all (torch/__init__.py).
_LIBRARIES = {
    "libtorch_global_deps.so": os.RTLD_NOW | os.RTLD_GLOBAL,
    "libtorch_cpu.so": os.RTLD_NOW,
    "libtorch_cuda.so": os.RTLD_NOW,
}
# What these say at every start is of kernels that nothing here asks for, and of each other's releases.
_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree", "diffusers.quantizers.torchao")


@contextmanager
def undisturbed() -> Iterator[None]:
    """For imports alone: objects made inside are taken for permanent and never collected as cycles."""
    if "torch" not in sys.modules:
        _link_torch()
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _link_torch() -> None:
    """Link torch's libraries by a foreign call, which lets go of the lock where an import would not.

    A library that is absent or does not link is left to the import, which says why.
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.origin or sys.platform != "linux":
        return
    for name, mode in _LIBRARIES.items():
        path = Path(torch.origin).parent / "lib" / name
        if path.exists():
            ctypes.CDLL(None).dlopen(os.fsencode(path), mode)
