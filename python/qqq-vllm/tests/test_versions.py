"""What the plugin uses of vLLM, which versions were tested, and that registering does no harm."""

import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from qqq_vllm import api, versions

CHECK = Path(__file__).resolve().parents[3] / "scripts" / "check-vllm-wheel.py"


def test_versions_that_were_not_tested_get_a_note():
    for version in ["0.25.1", "0.25.1+cpu", "0.32.0"]:
        assert versions.note(version) is None
    for version in ["0.25.0", "0.30.0", "0.32.1", "0.33.0", "0.33.0+cu130", "1.0.0", "dev"]:
        note = versions.note(version)
        assert f"this is {version}." in note and "0.25.1 and 0.32.0" in note


def test_an_untested_version_warns_and_goes_on(monkeypatch):
    vllm = pytest.importorskip("vllm")
    from qqq_vllm import config

    said = []
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    monkeypatch.setattr(config.logger, "warning_once", said.append, raising=False)
    read = config.QQQConfig.from_config({"quant_method": "qqq", "wbits": 4, "group_size": 128})
    assert read.native.schemes == ["W4A8 g128"] and len(said) == 1 and "this is 0.99.0" in said[0]


def test_the_installed_vllm_has_what_is_used():
    pytest.importorskip("vllm")
    assert api.missing() == []


def test_everything_that_is_imported_is_listed():
    """Else a version that lacks it would fail with a bare ImportError."""
    for file in Path(api.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                listed = {name.split(".")[0] for name in api.USED.get(node.module, {})}
                assert {a.name for a in node.names} <= listed, f"{file.name}: {ast.unparse(node)}"


def test_what_is_missing_is_named():
    def lacking(module, name):
        if name == "InductorPass.hash_dict":
            raise AttributeError("InductorPass has no hash_dict")
        return (lambda layer, x: x) if name == "LinearMethodBase.apply" else None

    says = api.missing(lacking)
    assert says == [
        "vllm.compilation.passes.inductor_pass.InductorPass.hash_dict (InductorPass has no hash_dict)",
        "parameter bias of vllm.model_executor.layers.linear.LinearMethodBase.apply",
    ]


def test_a_vllm_that_lacks_something_refuses_our_checkpoints_alone():
    pytest.importorskip("vllm")
    program = """
import sys
from qqq_vllm import api
api.USED["vllm.nowhere"] = {"Something": ()}
import qqq_vllm
qqq_vllm.register()
from vllm.model_executor.layers.quantization import get_quantization_config
config = get_quantization_config("qqq")
assert config.get_name() == "qqq"
assert config.override_quantization_method({"quant_method": "compressed-tensors"}, "qqq") == "qqq"
assert config.override_quantization_method({"quant_method": "compressed-tensors"}, None) is None
try:
    config.from_config({"quant_method": "qqq"})
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "which lacks vllm.nowhere.Something (No module named 'vllm.nowhere')" in run.stdout
    assert "Use vLLM 0.25.1 or 0.32.0" in run.stdout


def check_source(path):
    run = subprocess.run([sys.executable, str(CHECK), str(path)], capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_a_wheel_is_checked_without_being_installed(tmp_path):
    pytest.importorskip("vllm")
    folder = Path(importlib.util.find_spec("vllm").origin).parent
    assert check_source(folder) == (0, f"{sum(map(len, api.USED.values()))} names that the plugin uses are there\n")

    # One that lacks a module, a method and a parameter.
    wheel = tmp_path / "vllm-9-py3-none-any.whl"
    changes = {
        "vllm/platforms/interface.py": ("def is_cpu(", "def was_cpu("),
        "vllm/model_executor/layers/linear.py": ("output_partition_sizes: list[int],", "sizes: list[int],"),
    }
    with zipfile.ZipFile(wheel, "w") as file:
        for source in folder.rglob("*.py"):
            name = str(source.relative_to(folder.parent))
            if name == "vllm/compilation/passes/inductor_pass.py":
                continue
            old, new = changes.get(name, ("", ""))
            text = source.read_text()
            assert old in text
            file.writestr(name, text.replace(old, new) if old else text)
    code, says = check_source(wheel)
    assert code == 1
    for one in [
        "vllm.platforms.current_platform.is_cpu",
        "parameter output_partition_sizes of vllm.model_executor.layers.linear.LinearMethodBase.create_weights",
        "inductor_pass.enable_fake_mode (No module named 'vllm.compilation.passes.inductor_pass')",
    ]:
        assert one in says
    assert check_source(tmp_path / "none.whl")[0] == 2


def test_registering_twice():
    pytest.importorskip("vllm")
    import qqq_vllm
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

    qqq_vllm.register()
    qqq_vllm.register()
    assert QUANTIZATION_METHODS.count("qqq") == 1
    assert get_quantization_config("qqq").get_name() == "qqq"
