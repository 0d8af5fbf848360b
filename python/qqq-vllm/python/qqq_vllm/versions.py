"""Which versions of vLLM the plugin was tested with."""

#: Whole models were run in these.
TESTED = ("0.25.1", "0.32.0")


def note(version: str) -> str | None:
    """What to say about a version of vLLM; None of one that was tested."""
    if version.split("+")[0] in TESTED:
        return None
    return (
        f"qqq-vllm was tested with vLLM {' and '.join(TESTED)}, and this is {version}. Every layer is compared with integer "
        "products in PyTorch when it is loaded; should anything else fail, use one of these versions"
    )
