#!/usr/bin/env bash
# Puts a pinned NVRTC, the compiler of CUDA kernels, into the cache with pip, and prints the folder that holds it. The
# tests compile every kernel with it; they need no GPU:
#     QQQ_NVRTC=$(scripts/fetch-nvrtc.sh) cargo test -p qqq-cuda --test cuda_compile
set -euo pipefail

version=13.5.37
# The wheels for x86_64 and aarch64.
hashes=(
    --hash=sha256:86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc
    --hash=sha256:36e4fa2a8ada293f5693d308e531c196ab6f91cf7a0ff479bf96a537d43a6096
)

cache=${QQQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qqq}
target=$cache/nvrtc
lib=$target/nvidia/cu13/lib
if [ ! -d "$target/nvidia_cuda_nvrtc-$version.dist-info" ] || [ ! -f "$lib/libnvrtc.so.13" ]; then
    echo "Downloading nvidia-cuda-nvrtc==$version (58 MB) with pip ..." >&2
    mkdir -p "$cache"
    # On the cache's own disk, so that the last step is a rename.
    work=$(mktemp -d "$cache/.fetch-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "nvidia-cuda-nvrtc==$version ${hashes[*]}" >"$work/requirements.txt"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --target "$work/nvrtc" --requirement "$work/requirements.txt" >&2
    rm -rf "$target"
    mv -T "$work/nvrtc" "$target"
fi
echo "$lib"
