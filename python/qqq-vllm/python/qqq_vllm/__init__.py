"""W4A8 (QQQ) checkpoints in vLLM.

vLLM finds :func:`register` through the entry point ``vllm.general_plugins`` and calls it in each of its processes.
"""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__", "register"]

try:
    __version__ = version("qqq-vllm")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0"


def register() -> None:
    """Makes the quantization method ``qqq`` known to vLLM. It may be called any number of times."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from qqq_vllm.config import QQQConfig

    register_quantization_config("qqq")(QQQConfig)
