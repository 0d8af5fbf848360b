#!/usr/bin/env bash
# Opens the pages that qqq writes in a browser: nothing may be fetched, nothing may be wider than a telephone, and axe must
# find nothing (scripts/check_report.py says all that is looked at). The model is a tiny one of random weights.
# Usage: scripts/test-report.sh [--screenshots DIR], or --install: only makes the environment.
#
# Needs Chromium (Debian: chromium). The virtual environment (200 MB) is kept in the cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."

playwright=1.65.2
axe=0.1.8 # axe-core 4.12.1

cache=${QQQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qqq}
venv=$cache/report-$playwright-$axe
if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        "playwright==$playwright" "axe-playwright-python==$axe"
    touch "$venv/complete"
fi
[ "${1:-}" != --install ] || exit 0

if [ -z "${QQQ_BIN:-}" ]; then
    cargo build --quiet --locked -p qqq-cli
    QQQ_BIN=${CARGO_TARGET_DIR:-$PWD/target}/debug/qqq
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/shapes"
cat >"$work/shapes/config.json" <<'END'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
 "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512,
 "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
 "torch_dtype": "bfloat16"}
END
"$QQQ_BIN" synth --quiet --like "$work/shapes" -o "$work/tiny" >/dev/null
quantize() { # quantize NAME OPTION...
    local name=$1
    shift
    "$QQQ_BIN" quantize --quiet "$work/tiny" -o "$work/$name" --windows 2 --window 128 --max-kld off "$@" >/dev/null
    # A name of its own, for its screenshots.
    mv "$work/$name/report.html" "$work/$name.html"
}
# Every part that a page can have: outliers, losses, searches; rules and what decided on them; next to nothing; models side by side.
quantize smoothed --transform smooth --group-size channel
quantize budget --transform rotate --budget 5
quantize rounded --recipe rtn --held-out 0
questions=crates/qqq-eval/tests/questions
"$QQQ_BIN" compare --quiet "$work/tiny" "$work/smoothed" "$work/rounded" --text README.md --window 128 --limit 4 \
    --data "piqa=$questions/piqa.jsonl" --data "winogrande=$questions/winogrande.jsonl" --tasks piqa,winogrande --speed --prompt-tokens 16 --new-tokens 4 --repeat 2 \
    --report "$work/comparison.html" >/dev/null
"$venv/bin/python" scripts/check_report.py "$work"/*.html "$@"
