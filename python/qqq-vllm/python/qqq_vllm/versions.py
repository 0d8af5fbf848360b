"""Which versions of vLLM the plugin works with."""

import os

# The plugin is tested with the first and the last.
OLDEST, NEWEST = (0, 25, 1), (0, 32)
#: Set to 1 to try another version.
ANY_VERSION = "QQQ_VLLM_ANY_VERSION"


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not part[:1].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check(version: str) -> None:
    """Refuses versions of vLLM that the plugin does not know; ValueError says what to do."""
    numbers = _numbers(version)
    if (OLDEST <= numbers and numbers[: len(NEWEST)] <= NEWEST) or os.environ.get(ANY_VERSION) == "1":
        return
    raise ValueError(
        f"qqq-vllm works with vLLM {_text(OLDEST)} to {_text(NEWEST)}.x, and this is {version}: install one of these "
        f"versions, or another version of qqq-vllm; {ANY_VERSION}=1 tries this one"
    )
