#!/usr/bin/env bash
# Runs the backend's tests on the NEON path: built for aarch64, run by QEMU. Where what that takes cannot be had, it says
# that it is skipped and ends well, or, with CI=true, fails.
set -euo pipefail
cd "$(dirname "$0")/.."

unavailable() { # unavailable REASON
    if [ "${CI:-}" = true ]; then
        echo "NEON: error: not tested, because $1" >&2
        exit 1
    fi
    echo "NEON: skipped, because $1"
    exit 0
}

target=aarch64-unknown-linux-gnu
if ! rustup target list --installed 2>/dev/null | grep -qx "$target" && ! rustup target add "$target"; then
    unavailable "the standard library for $target is not available here"
fi
missing=()
command -v aarch64-linux-gnu-gcc >/dev/null || missing+=(gcc-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        unavailable "these are missing: ${missing[*]} (Debian: apt-get install ${missing[*]})"
    fi
    apt-get update -qq && apt-get install -y -qq "${missing[@]}"
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max"
cargo test -p qqq-backend --tests --locked --target "$target"
