#!/usr/bin/env bash
# Installs NVIDIA's run-time compiler (a Python wheel; no GPU or driver needed) into the user's cache and prints its folder,
# for the tests that compile the GPU kernels:
#
#   export QQQ_NVRTC=$(scripts/fetch-nvrtc.sh)
set -euo pipefail

version=13.5.37
target="${XDG_CACHE_HOME:-$HOME/.cache}/qqq/nvrtc-$version"
folder="$target/nvidia/cu13/lib"

if [ ! -e "$folder/libnvrtc.so.13" ]; then
    # Complete under its name or not at all.
    mkdir -p "$(dirname "$target")"
    new=$(mktemp -d "$target.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    python3 -m pip install --quiet --no-deps --target "$new" "nvidia-cuda-nvrtc==$version" >&2
    mv -T "$new" "$target" 2>/dev/null || [ -e "$folder/libnvrtc.so.13" ]
fi
printf '%s\n' "$folder"
