#!/usr/bin/env bash
# Builds every fuzz target once and runs each for some seconds. usage: tests/fuzz/run.sh [SECONDS_PER_TARGET [TARGET...]]
#
# The stable compiler can do all of it: coverage comes from LLVM's own pass, libFuzzer from the crate libfuzzer-sys. What a run
# learns stays in tests/fuzz/corpus and is where the next one begins; an input that fails is kept in tests/fuzz/artifacts. Both
# are ignored by git. FUZZ_SEED fixes libFuzzer's random seed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${1:-5}
case $seconds in '' | *[!0-9]*)
    echo "usage: tests/fuzz/run.sh [SECONDS_PER_TARGET [TARGET...]]" >&2
    exit 2
    ;;
esac
[ $# -eq 0 ] || shift
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in src/bin/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/splice
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
cover=-Cllvm-args=-sanitizer-coverage
flags="--cfg fuzzing -Cpasses=sancov-module $cover-level=4 $cover-inline-8bit-counters $cover-pc-table $cover-trace-compares"
out=$CARGO_TARGET_DIR/$host/debug

# --target keeps the instrumentation out of build scripts and macros.
build=(--bins)
if [ $# -gt 0 ]; then
    build=()
    for target in "${targets[@]}"; do build+=(--bin "$target"); done
fi
RUSTFLAGS=$flags cargo build --quiet --locked --target "$host" --example seeds "${build[@]}"

# The longest input of a target, in bytes: long enough for every seed of it.
longest() {
    case $1 in
    partition_table | inspect) echo 140000 ;;
    qcow2) echo 300000 ;;
    nbd_* | responder | wire | control | guest_lines | snapshot) echo 32768 ;;
    sim_wan | api_json | names | join_token | virtio_* | pci_config | vmm_control | rfb_client) echo 4096 ;;
    *) echo 8192 ;;
    esac
}

seeds=$CARGO_TARGET_DIR/seeds
rm -rf "$seeds"
# libFuzzer misses the sanitizers' hooks, which stable builds do not have, and says so.
"$out/examples/seeds" "$seeds" 2> >(grep -v '^WARNING: Failed to find function' >&2)
mkdir -p artifacts

passed=0 failed=0
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "$seeds/$target"
    # What failed before is tried first.
    cp "artifacts/$target"-* "$seeds/$target/" 2>/dev/null || true
    log=$CARGO_TARGET_DIR/$target.log
    status=0
    "$out/$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -max_len="$(longest "$target")" \
        -seed="${FUZZ_SEED:-0}" -print_final_stats=1 -artifact_prefix="artifacts/$target-" \
        "corpus/$target" "$seeds/$target" >"$log" 2>&1 </dev/null || status=$?
    # libFuzzer's last line of progress: "#4711 DONE cov: 12 ft: 34 corp: 5/67b …".
    found=$(sed -n 's/^#\([0-9]*\)[^0-9].* cov: \([0-9]*\) ft: [0-9]* corp: \([0-9]*\).*/\1 executions, \2 edges, \3 inputs kept/p' "$log" | tail -1)
    if [ "$status" -eq 0 ] && [ -n "$found" ]; then
        passed=$((passed + 1))
        printf '%-16s passed: %s\n' "$target" "$found"
    else
        failed=$((failed + 1))
        printf '%-16s FAILED: status %s after %s\n' "$target" "$status" "${found:-no execution}"
        grep -aE "panicked at|ERROR: libFuzzer|Test unit written" -A2 "$log" | head -20 || tail -20 "$log"
        input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
        [ -z "$input" ] || echo "replay: cd tests/fuzz && RUST_BACKTRACE=1 $out/$target $input"
        echo "log: $log"
    fi
done
# The word in front is how `./x test` finds the count.
echo "checks: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
