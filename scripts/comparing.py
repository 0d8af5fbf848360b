"""What scripts that set other tools or other code beside `qqq` have in common: the same calibration tokens, the same windows of
held-out text, the same perplexity, and the command itself.
"""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

# As in qqq-quant's calibration.rs: texts are tokenized in pieces, documents end with a separator, and windows are placed by
# bytes only where a stratum has this many for each token.
PIECE_BYTES, SEPARATOR, ROOMY_TOKEN_BYTES = 16 << 10, "\n\n", 8


def pieces(data: bytes) -> Iterator[str]:
    """As `qqq quantize` cuts a text before it makes tokens of it: after line breaks."""
    at = 0
    while at < len(data):
        end = len(data)
        if end - at > PIECE_BYTES:
            limit = at + PIECE_BYTES
            while data[limit] & 0xC0 == 0x80:
                limit += 1
            end = data.rfind(b"\n", at, limit) + 1 or limit
        yield data[at:end].decode()
        at = end


def calibration_windows(tokenizer, text: Path, count: int, length: int, to: Path) -> list[list[int]]:
    """Writes to `to` the beginning of a text that has `count * length` tokens, and gives its windows. What is too much for
    even windows is less than a token each, so that each window of `qqq quantize` starts where its stratum does."""
    needed = count * length

    def ids(part: str) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=False).ids

    head, found = "", 0
    for piece in pieces(text.read_bytes()):
        tokens = len(ids(piece))
        if found + tokens > needed:
            break
        head, found = head + piece, found + tokens
    else:
        raise ValueError(f"{text} has {found} tokens, but {count} windows of {length} need {needed}")
    # The shortest beginning of the last piece that gives enough.
    low, high = 0, len(piece)
    while low < high:
        middle = (low + high) // 2
        if found + len(ids(piece[:middle] + SEPARATOR)) >= needed:
            high = middle
        else:
            low = middle + 1
    taken = head + piece[:low]
    tokens = [token for part in pieces((taken + SEPARATOR).encode()) for token in ids(part)]
    if not needed <= len(tokens) < needed + count or len(taken.encode()) // count >= length * ROOMY_TOKEN_BYTES:
        raise ValueError(
            f"the beginning of {text} gives {len(tokens)} tokens for {count} windows of {length}; try others"
        )
    to.write_text(taken, encoding="utf-8", newline="")
    return [tokens[i * length : (i + 1) * length] for i in range(count)]


def evaluation_windows(tokenizer, text: Path, length: int, limit: int | None) -> list[list[int]]:
    """The windows of `qqq eval perplexity`: side by side, whole ones only."""
    ids = tokenizer.encode(text.read_text(encoding="utf-8")).ids
    starts = list(range(0, len(ids) - length + 1, length))[:limit]
    if not starts:
        raise ValueError(f"{text} has {len(ids)} tokens: not a window of {length}")
    return [ids[start : start + length] for start in starts]


def perplexity(logits, windows: list[list[int]], device: str) -> float:
    """That of every token but a window's first. `logits` gives those of `1 x T` tokens, `1 x T x vocabulary`."""
    import torch

    def loss(window: list[int]) -> float:
        ids = torch.tensor([window], device=device)
        of_next = logits(ids)[0, :-1].float()
        return torch.nn.functional.cross_entropy(of_next, ids[0, 1:], reduction="sum").double().item()

    with torch.inference_mode():
        return math.exp(sum(map(loss, windows)) / sum(len(window) - 1 for window in windows))


class Qqq:
    """Our command: where it computes, and what it evaluates on."""

    def __init__(self, command: Path, device: str, texts: list[Path], eval_window: int, limit: int | None):
        self.command, self.device, self.texts = command, device, texts
        self.how = ["--window", eval_window, *(["--limit", limit] if limit else [])]

    def version(self) -> str:
        return subprocess.run(
            [str(self.command), "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()

    def run(self, *command, device: bool = True) -> dict:
        """What a command says in JSON."""
        where = ["--device", self.device] if device else []
        line = [str(part) for part in [self.command, "--json", "--quiet", *command, *where]]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def perplexities(self, model: Path) -> dict[str, float]:
        return {
            text.name: self.run("eval", "perplexity", model, "--text", text, *self.how)["perplexity"]
            for text in self.texts
        }

    def quantize(self, model: Path, options: list[str], calibration: list[str], out: Path) -> float:
        """Seconds that it took."""
        start = time.monotonic()
        self.run("quantize", model, "-o", out, *options, *calibration, "--max-kld", "off", "--held-out", 0)
        return time.monotonic() - start
