"""The kernels work on PyTorch's threads: two pools that spin on the same cores slow each other down, and vLLM has bound
PyTorch's threads to the cores that are to be used."""

import ctypes
import logging

import torch

from qqq_vllm import _native

_done = False


def _gomp_parallel() -> int | None:
    """The address of ``GOMP_parallel`` in the OpenMP runtime that PyTorch uses; GNU's, LLVM's and Intel's have it."""
    libraries: list[str | None] = [None]  # the process's own names: a preloaded runtime comes first
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line and "omp" in line}
        libraries += sorted(p for p in paths if p.rpartition("/")[2].startswith(("libgomp", "libiomp", "libomp")))
    except OSError:
        pass
    for library in libraries:
        try:
            function = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


def share_threads() -> None:
    """Makes PyTorch's threads those of the kernels; once a process."""
    global _done
    if _done:
        return
    _done = True
    address = _gomp_parallel()
    if address is None:
        logging.getLogger("vllm.plugins.qqq").warning(
            "PyTorch's OpenMP runtime was not found: the kernels start threads of their own (QQQ_THREADS says how many)"
        )
        return
    _native.use_openmp(address, torch.get_num_threads())
