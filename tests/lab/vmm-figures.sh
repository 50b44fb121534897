#!/usr/bin/env bash
# Figures of splice-vmm on the KVM at hand; started by ./x lab vmm-figures. They go into docs/vmm.md.
set -euo pipefail
target=$(realpath -m "${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/splice/target}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

strip -o "$work/splice-vmm" "$target/debug/splice-vmm"
echo "stripped program: $(stat -c %s "$work/splice-vmm") bytes"
"$work/splice-vmm" check | tail -1
cargo build --quiet --locked -p vmm --example figures
"$target/debug/examples/figures" "$work/splice-vmm"
