"""Makes what the tests of this folder read, in the folder that the command line names: tiny models, and what `qqq quantize`
and `qqq convert` make of them, with the perplexities that `qqq eval` finds. Needs no compressed-tensors."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny import FAMILIES, qqq, qqq_perplexity, write_model, write_text

# Group size, kind of group scales, transform.
RECIPES = {
    "auto": ("64", "half", "auto"),
    "channel": ("channel", None, "rotate"),
    "g32-integer": ("32", "integer", "rotate"),
    "g32-half": ("32", "half", "smooth"),
    "g128-integer": ("128", "integer", "smooth"),
    "g128-half": ("128", "half", "rotate"),
}


# All recipes for these; one for the families that other tests have seen from end to end.
MANY = ("llama", "qwen2", "qwen3")

# What the rounding of qqq-testing's example makes of one family: the scheme of most layers, and of parts of their names.
ROUNDED = {
    "w8a8": ["W8A8"],
    "w4a16-g32": ["W4A16 g32"],
    "w8a16": ["W8A16"],
    "mixed": ["W4A8 g64", "layers.0.mlp.down_proj=float", "down_proj=W8A8", "o_proj=W4A16 g32"],
}

# Transforms of models whose output head becomes int8 as well: one of its own, one that is tied to the embedding, and one that
# a rotation has taken from it.
HEADS = {"head": ("llama", "rotate"), "head-untied": ("qwen2", "none"), "head-rotated": ("qwen2", "rotate")}

# Of these, a form without int8 activations is made as well.
WEIGHTS_ALONE = ("channel", "g32-half")


def main(root: Path) -> None:
    write_text(root / "calibration.txt", seed=1, words=1200)
    write_text(root / "evaluation.txt", seed=2, words=600)
    perplexities = {}
    for family in FAMILIES:
        source = root / family
        write_model(source, family)
        for name, (group_size, scales, transform) in RECIPES.items():
            if (name == "auto") == (family in MANY):
                continue
            out = root / f"{family}-{name}"
            options = ["--group-size", group_size, "--transform", transform]
            if scales is not None:
                options += ["--group-scales", scales]
            result = qqq(
                "quantize", source, "-o", out, "--format", "compressed-tensors", "--calibration",
                root / "calibration.txt", "--windows", 4, "--window", 256, *options,
            )  # fmt: skip
            assert "error" not in result, result
            if family in MANY and name in WEIGHTS_ALONE:
                (root / "w4a16").mkdir(exist_ok=True)
                result = qqq("convert", out, "-o", root / "w4a16" / out.name, "--to", "compressed-tensors")
                assert "error" not in result, result
            perplexities[out.name] = qqq_perplexity(out, root / "evaluation.txt")
    for name, (family, transform) in HEADS.items():
        out = root / f"{family}-{name}"
        result = qqq(
            "quantize", root / family, "-o", out, "--head", "int8", "--group-size", "64", "--transform", transform,
            "--calibration", root / "calibration.txt", "--windows", 4, "--window", 256,
        )  # fmt: skip
        assert "error" not in result, result
        perplexities[out.name] = qqq_perplexity(out, root / "evaluation.txt")
    for name, schemes in ROUNDED.items():
        out = root / f"llama-{name}"
        subprocess.run([os.environ["QQQ_ROUNDED"], root / "llama", out, *schemes], check=True)
        perplexities[out.name] = qqq_perplexity(out, root / "evaluation.txt")
    (root / "perplexities.json").write_text(json.dumps(perplexities, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
