#!/usr/bin/env bash
# Tests compressed-tensors checkpoints with the libraries that others read and write them with: what the qqq binary writes is
# loaded by transformers, and what compressed-tensors writes by qqq. Usage: scripts/test-transformers.sh [pytest arguments], or
# --install: only makes the environments.
#
# Each set of versions has a virtual environment (some 350 MB), which is kept in the cache folder. PyTorch (5 GB) they
# share: that of scripts/test-vllm.sh's environment if there is one, else one of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=2.11.0
# The newest, the oldest that transformers 5 takes, and the last ones before it: name, transformers, compressed-tensors, others.
sets=("newest 5.24.0 0.20.0" "oldest 5.24.0 0.15.0" "before-5 4.57.3 0.12.2 accelerate==1.12.0")

cache=${QQQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qqq}
site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

venv() { # venv DIRECTORY PACKAGE...: makes an environment unless it is complete
    local directory=$1
    shift
    [ -e "$directory/complete" ] && return
    rm -rf "$directory"
    python3 -m venv "$directory"
    "$directory/bin/pip" install --quiet uv
    printf '%s\n' "$overrides" >"$directory/overrides.txt"
    # Compiled at once: where Python is told to keep no compiled code, every process would compile it anew.
    "$directory/bin/uv" pip install --quiet --compile-bytecode --python "$directory/bin/python" \
        --override "$directory/overrides.txt" "$@"
    [ -z "$shared" ] || echo "$shared" >"$(site "$directory")/torch.pth"
    touch "$directory/complete"
}

overrides='' shared=''
base=${QQQ_VLLM_VENV:-$cache/vllm-0.25.1}
if [ ! -e "$base/complete" ] || [ ! -d "$(site "$base")/torch-$torch.dist-info" ]; then
    base=$cache/torch-$torch
    venv "$base" "torch==$torch" numpy
fi
shared=$(site "$base")
# Found in the shared folder, so not installed again.
overrides='torch; python_version < "3"'

for set in "${sets[@]}"; do
    read -r name transformers compressed_tensors others <<<"$set"
    venv "$cache/transformers-$transformers-$compressed_tensors" \
        "transformers==$transformers" "compressed-tensors==$compressed_tensors" "pytest>=8" $others
done
[ "${1:-}" != --install ] || exit 0

if [ -z "${QQQ_BIN:-}" ]; then
    cargo build --quiet --locked -p qqq-cli
    export QQQ_BIN=${CARGO_TARGET_DIR:-$PWD/target}/debug/qqq
fi
if [ -z "${QQQ_ROUNDED:-}" ]; then
    cargo build --quiet --locked -p qqq-testing --example rounded
    export QQQ_ROUNDED=${CARGO_TARGET_DIR:-$PWD/target}/debug/examples/rounded
fi
QQQ_INTEROP=$(mktemp -d)
export QQQ_INTEROP PYTHONDONTWRITEBYTECODE=1
trap 'rm -rf "$QQQ_INTEROP"' EXIT

for set in "${sets[@]}"; do
    read -r name transformers compressed_tensors _ <<<"$set"
    directory=$cache/transformers-$transformers-$compressed_tensors
    echo "== $name: transformers $transformers, compressed-tensors $compressed_tensors"
    tests=(tests/interop/test_written.py)
    if [ "$name" = newest ]; then
        # What the other sets read as well; and what their library writes differs in nothing that is read.
        "$directory/bin/python" tests/interop/make_checkpoints.py "$QQQ_INTEROP"
        tests+=(tests/interop/test_read.py)
    fi
    "$directory/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}" "$@"
done
