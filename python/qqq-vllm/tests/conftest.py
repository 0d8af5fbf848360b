"""Checkpoints made by the `qqq` binary, and vLLM in processes of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
QQQ = Path(os.environ.get("QQQ_BIN", ROOT / "target" / "debug" / "qqq"))
CI = os.environ.get("CI") == "true"
# How the reasons begin for which a test may be skipped even in CI: what a machine or a build has or has not.
MACHINE = ("needs a GPU", "this machine", "this build of vLLM")


def _failed_in_ci(report):
    """A skip in CI, which must have everything that can be had, is a failure: also one that a whole file asks for."""
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(MACHINE):
            report.outcome = "failed"
            report.longrepr = f"skipped, in CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _failed_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _failed_in_ci((yield))


def qqq(*arguments: object) -> dict:
    """Runs the binary; its JSON result."""
    if not QQQ.exists():
        pytest.skip(f"{QQQ} is missing: run cargo build, or set QQQ_BIN")
    run = subprocess.run([str(QQQ), *map(str, arguments), "--json"], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="session")
def text() -> Path:
    """For calibration and perplexity: what the test model wrote itself (data/README.md)."""
    return Path(__file__).with_name("data") / "smollm2.txt"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The float model."""
    return Path(qqq("demo", "--fetch-only")["path"])


def quantize(model: Path, out: Path, text: Path, *options: object) -> Path:
    """A checkpoint, with as little calibration as the recipe takes."""
    qqq(
        "quantize",
        model,
        "-o",
        out,
        "--calibration",
        text,
        "--method",
        "rtn",
        "--clip",
        "output",
        "--windows",
        1,
        "--window",
        64,
        *options,
    )
    return out


@dataclass
class Run:
    """What vLLM gave, and what it said."""

    code: int
    result: dict | None
    log: str


def run_vllm(folder: Path, *, prompts=(), windows=(), max_tokens=16, env=None, **engine) -> Run:
    """Runs vLLM; eager unless asked otherwise, with few sequences and tokens at a time."""
    output = folder / "result.json"
    output.unlink(missing_ok=True)
    defaults = {
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 4,
        "dtype": "float32",
    }
    request = {
        "engine": defaults | engine,
        "prompts": list(prompts),
        "windows": list(windows),
        "max_tokens": max_tokens,
        "output": str(output),
    }
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # What every thread did, should the process be aborted.
        "PYTHONFAULTHANDLER": "1",
    }
    if request["engine"]["enforce_eager"]:
        # Else some functions of vLLM are compiled all the same.
        variables["TORCHDYNAMO_DISABLE"] = "1"
    if request["engine"].get("tensor_parallel_size", 1) == 1:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_vllm.py"))],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | variables | (env or {}),
    )
    result = json.loads(output.read_text()) if output.exists() else None
    return Run(run.returncode, result, run.stdout + run.stderr)


def assert_same_greedy(expected: list[int], answer: dict, tolerance: float) -> None:
    """The same tokens, or a first difference where vLLM finds both tokens about as likely: their logits are within
    `tolerance`."""
    # Our engine stops at the end of the text; vLLM was told to go on.
    assert 0 < len(expected) <= len(answer["tokens"])
    for i, (ours, theirs) in enumerate(zip(expected, answer["tokens"])):
        if ours != theirs:
            top = answer["top"][i]
            assert str(ours) in top, f"token {i}: ours {ours} is not among vLLM's five likeliest {top}"
            gap = top[str(theirs)] - top[str(ours)]
            assert gap <= tolerance, f"token {i}: ours {ours}, vLLM's {theirs}, which it finds likelier by {gap}"
            return
