#!/usr/bin/env python3
"""Draws gemm-speed-up.svg from the tables of ../benchmarks.md. Usage: docs/figures/gemm_speed_up.py

Speed-up over cuBLAS float16 against the number of tokens, N = 8192, K = 21760. Every kernel is compared with the cuBLAS
times of its own table; humming, whose table has multiples of our time, where both tables have the number of tokens.
"""

import math
import re
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 152, 62, 48
TOP_SPEED_UP = 5


def number(cell: str) -> float:
    """The first number of a table's cell: "30.0 (33.0)" is 30.0."""
    return float(re.search(r"[\d.]+", cell.replace(",", "")).group())


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The first table after a heading, a dict a row."""
    part = text[text.index(f"\n{heading}\n") :]
    lines = re.search(r"(^\|.*\n)+", part, re.M).group().splitlines()
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in rows]


def speed_ups(text: str) -> dict[str, dict[int, float]]:
    """For each kernel its speed-up over cuBLAS float16 by tokens."""
    hopper = table(text, "### Beside cuBLAS")
    ours = {int(row["tokens"]): number(row["cuBLAS float16"]) / number(row["per channel (alone)"]) for row in hopper}
    cublas = {int(row["tokens"]): number(row["cuBLAS float16"]) for row in hopper}

    peers = table(text, "### Beside humming")
    row = next(row for row in peers if row["N x K, per channel"] == "8192 x 21760")
    humming = {}
    for tokens, cell in list(row.items())[1:]:
        us, multiple = re.fullmatch(r"([\d.]+) \(([\d.]+)\)", cell).groups()
        tokens = number(tokens)
        if tokens in cublas:
            humming[int(tokens)] = cublas[tokens] / (float(us) * float(multiple))

    others = table(text, "### The kernel for Ampere and newer")

    def other(column: str) -> dict[int, float]:
        return {int(row["tokens"]): number(row["cuBLAS float16"]) / number(row[column]) for row in others}

    return {
        "qqq": ours,
        "humming": humming,
        "vLLM Marlin": other("Marlin W4A8, per channel"),
        "QQQ reference": other("QQQ reference, per channel"),
    }


def colours(of: list[str]) -> str:
    """A rule for each line, its points and its name."""
    rules = [f".s{i} path {{ stroke: {c} }} .s{i} circle, .s{i} text {{ fill: {c} }}" for i, c in enumerate(of)]
    return "\n".join(rules)


def draw(series: dict[str, dict[int, float]]) -> str:
    """The figure as SVG, legible on a light and on a dark page: it has a background of its own, which follows the reader's."""
    ticks = sorted(series["qqq"])
    span = math.log2(ticks[-1])

    def x(tokens: float) -> float:
        return LEFT + math.log2(tokens) / span * (WIDTH - LEFT - RIGHT)

    def y(speed_up: float) -> float:
        return HEIGHT - BOTTOM - speed_up / TOP_SPEED_UP * (HEIGHT - TOP - BOTTOM)

    right = WIDTH - RIGHT
    body = [
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'<text class="title" x="{LEFT - 30}" y="26">W4A8 GEMM on an H100: speed-up over cuBLAS float16</text>',
        f'<text x="{LEFT - 30}" y="45">N = 8192, K = 21760, weights per channel</text>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">tokens</text>',
    ]
    for level in range(TOP_SPEED_UP + 1):
        body.append(f'<path class="grid" d="M{LEFT} {y(level):.1f}H{right}"/>')
        body.append(f'<text x="{LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level}x</text>')
    body.append(f'<path class="cublas" d="M{LEFT} {y(1):.1f}H{right}"/>')
    body.append(f'<text x="{right + 10}" y="{y(1) - 1:.1f}">cuBLAS float16</text>')
    for tokens in ticks:
        body.append(f'<text x="{x(tokens):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tokens}</text>')
    # Where the lines' names stand, so that they do not meet.
    names = {"qqq": 0, "humming": 16, "vLLM Marlin": 2, "QQQ reference": 12}
    for at, (name, points) in enumerate(series.items()):
        path = " L".join(f"{x(tokens):.1f} {y(value):.1f}" for tokens, value in points.items())
        body.append(f'<g class="s{at}"><path d="M{path}"/>')
        body += [f'<circle cx="{x(t):.1f}" cy="{y(v):.1f}" r="3.5"/>' for t, v in points.items()]
        last = list(points)[-1]
        body.append(f'<text x="{x(last) + 10:.1f}" y="{y(points[last]) + 4 + names[name]:.1f}">{name}</text></g>')
    light = ["#0969da", "#bc4c00", "#1a7f37", "#8250df"]
    dark = ["#58a6ff", "#f0883e", "#3fb950", "#bc8cff"]
    style = f"""
text {{ font: 13px system-ui, sans-serif; fill: #57606a }}
.title {{ font-weight: 600; font-size: 15px; fill: #1f2328 }}
.page {{ fill: #ffffff }}
.grid {{ stroke: #d8dee4 }} .cublas {{ stroke: #57606a; stroke-dasharray: 5 4 }}
g path {{ fill: none; stroke-width: 2 }}
.s0 path {{ stroke-width: 3 }} .s0 text {{ font-weight: 600 }}
{colours(light)}
@media (prefers-color-scheme: dark) {{
text {{ fill: #9198a1 }} .title {{ fill: #f0f6fc }} .page {{ fill: #0d1117 }}
.grid {{ stroke: #30363d }} .cublas {{ stroke: #9198a1 }}
{colours(dark)}
}}
"""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
        f"\n<title>Speed-up over cuBLAS float16 by tokens</title>\n<style>{style}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


if __name__ == "__main__":
    found = speed_ups((HERE.parent / "benchmarks.md").read_text())
    (HERE / "gemm-speed-up.svg").write_text(draw(found))
    for name, points in found.items():
        print(f"{name:14}", "  ".join(f"{tokens}: {value:.2f}" for tokens, value in points.items()))
