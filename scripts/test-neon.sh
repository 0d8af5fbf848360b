#!/usr/bin/env bash
# Runs the backend's tests on the NEON path: built for aarch64, run by QEMU. Says so and ends well where Rust's
# standard library for aarch64 cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
if ! rustup target list --installed 2>/dev/null | grep -qx "$target" && ! rustup target add "$target"; then
    echo "NEON: skipped, because the standard library for $target is not available here"
    exit 0
fi
missing=()
command -v aarch64-linux-gnu-gcc >/dev/null || missing+=(gcc-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "NEON: skipped, because these are missing: ${missing[*]} (Debian: apt-get install ${missing[*]})"
        exit 0
    fi
    apt-get update -qq && apt-get install -y -qq "${missing[@]}"
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max"
# The compilers of the GPU kernels, real and emulated, make libraries for this machine's processor.
cargo test -p qqq-backend --tests --locked --target "$target" -- --skip every_kernel_compiles_cleanly --skip emulated_
