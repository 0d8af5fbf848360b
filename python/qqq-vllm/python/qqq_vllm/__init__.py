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
    """Makes the quantization method ``qqq`` known to vLLM. It may be called any number of times.

    A vLLM that lacks what the plugin uses runs its other models as ever: the error comes with a checkpoint for the plugin, and
    names what is missing.
    """
    from qqq_vllm import api

    lacks = api.missing()
    if lacks:
        _register_refusal(lacks)
        return
    from vllm.model_executor.layers.quantization import register_quantization_config

    from qqq_vllm.config import QQQConfig

    register_quantization_config("qqq")(QQQConfig)


def _register_refusal(lacks: list[str]) -> None:
    import logging

    import vllm

    from qqq_vllm import versions

    says = (
        f"qqq-vllm cannot run in vLLM {getattr(vllm, '__version__', 'of an unknown version')}, which lacks "
        f"{'; '.join(lacks)}. Use vLLM {' or '.join(versions.TESTED)}, or another version of qqq-vllm"
    )
    try:
        from vllm.model_executor.layers.quantization import register_quantization_config
        from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

        class Refusal(QuantizationConfig):
            """In place of the configuration that cannot be used."""

            @classmethod
            def from_config(cls, config):
                raise ValueError(says)

            @classmethod
            def override_quantization_method(cls, hf_quant_cfg, user_quant, **_):
                asked = user_quant == "qqq" and hf_quant_cfg.get("quant_method") == "compressed-tensors"
                return "qqq" if asked else None

            # Asked for before the configuration is read.
            @classmethod
            def get_name(cls):
                return "qqq"

            @classmethod
            def get_min_capability(cls):
                return 0

            @staticmethod
            def get_config_filenames():
                return ["quantize_config.json"]

            @classmethod
            def get_supported_act_dtypes(cls):
                return []

            def get_quant_method(self, layer, prefix):
                raise ValueError(says)

        register_quantization_config("qqq")(Refusal)
    except Exception as error:  # not even this: other models shall run all the same
        logging.getLogger("vllm.plugins.qqq").warning("%s (%s)", says, error)
