"""Which versions of vLLM are taken, and that registering does no harm."""

import pytest
from qqq_vllm import versions


def test_known_versions_are_taken():
    for version in ["0.25.1", "0.25.1+cpu", "0.25.2", "0.30.0", "0.32.1"]:
        versions.check(version)


@pytest.mark.parametrize("version", ["0.9.2", "0.25.0", "1.0.0", "0.99.0", "dev"])
def test_others_are_refused(version, monkeypatch):
    monkeypatch.delenv(versions.ANY_VERSION, raising=False)
    with pytest.raises(ValueError, match="qqq-vllm works with vLLM 0.25.1 to"):
        versions.check(version)
    monkeypatch.setenv(versions.ANY_VERSION, "1")
    versions.check(version)


def test_registering_twice():
    pytest.importorskip("vllm")
    import qqq_vllm
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

    qqq_vllm.register()
    qqq_vllm.register()
    assert QUANTIZATION_METHODS.count("qqq") == 1
    assert get_quantization_config("qqq").get_name() == "qqq"
