#!/bin/sh
# A TPM in software for the test of branch keys: starts swtpm, runs the test against it, stops it.
# Needs Debian's packages swtpm, swtpm-tools and tpm2-tools.
set -eu
state=$(mktemp -d)
swtpm socket --tpm2 --tpmstate "dir=$state" --flags not-need-init,startup-clear \
    --server "type=unixio,path=$state/tpm.sock" --ctrl "type=unixio,path=$state/ctrl.sock" &
tpm=$!
trap 'kill "$tpm" 2>/dev/null || true; rm -rf "$state"' EXIT
tries=0
while [ ! -S "$state/tpm.sock" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "swtpm does not start" >&2; exit 1; }
    sleep 0.1
done
TPM2TOOLS_TCTI="swtpm:path=$state/tpm.sock"
SPLICE_TEST_TPM=$TPM2TOOLS_TCTI
export TPM2TOOLS_TCTI SPLICE_TEST_TPM
cargo test -p branch --lib keys::tests::a_tpm_opens_what_it_sealed -- --nocapture
