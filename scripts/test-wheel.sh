#!/usr/bin/env bash
# Builds the Python package that holds the qqq binary, installs it into a new virtual environment, and uses it there as
# someone without Rust would. Usage: scripts/test-wheel.sh
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/pip" install --quiet --disable-pip-version-check "maturin>=1.9,<2"
# A folder of its own: for one package cargo selects other features than for the workspace, so nothing could be shared. What is
# tested is how the binary gets to a user, so it need not be fast.
(cd crates/qqq-cli && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../target}/wheel \
    CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0 \
    "$work/build/bin/maturin" build --quiet --locked --profile dev --out "$work/wheels")

python3 -m venv "$work/user"
"$work/user/bin/pip" install --quiet --disable-pip-version-check --no-index --find-links "$work/wheels" qqq-w4a8
# Nothing of Rust is in the path, and nothing of the checkout is near.
cd "$work"
export PATH=$work/user/bin:/usr/bin:/bin
version=$(qqq --version)
model=$(qqq demo --fetch-only)
[ -s "$model" ] || { echo "error: qqq demo --fetch-only says $model, and there is no such file" >&2; exit 1; }
qqq inspect "$model" --json >inspected.json
echo "$version, in $(cd wheels && ls): found ${model##*/}"
