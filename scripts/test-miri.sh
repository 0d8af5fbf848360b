#!/usr/bin/env bash
# Runs the tests of the thread pool, whose unsafe part hands work to other threads, under Miri: three schedules, data races
# are errors. Takes a minute and a half. Installs Miri into the nightly toolchain where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo +nightly miri --version >/dev/null 2>&1 ||
    rustup toolchain install nightly --profile minimal --component miri,rust-src
MIRIFLAGS="-Zmiri-ignore-leaks -Zmiri-num-cpus=2 -Zmiri-many-seeds=0..3" \
    cargo +nightly miri test -p qqq-backend --lib --locked -- pool::tests team::tests
