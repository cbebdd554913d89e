#!/usr/bin/env bash
# Real MCP clients against a real system: run.sh PROGRAM
#
# Claude Code, the MCP Inspector and the official Python SDK use a tool whose key is in the vault;
# the upstream is the demo's, and Claude Code's model is the demo's scripted one. After each client
# the upstream must have seen the real key, and nothing that the client keeps may hold it.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
program=$(realpath "$1")
cache=${CLAVIGER_TEST_CLIENTS:-${TMPDIR:-/tmp}/claviger-clients}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/claviger-cl.XXXXXX")
export PYTHONDONTWRITEBYTECODE=1
begun=$SECONDS
started=()

finish() {
    code=$?
    CLAVIGER_HOME=$scratch/home "$program" down >/dev/null 2>&1 || true
    for pid in ${started[@]+"${started[@]}"}; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [ $code -ne 0 ]; then
        echo "a client did not do its part; the logs of the roles and of the client:" >&2
        tail -n 5 "$scratch"/home/log/*.log "$scratch"/out/* >&2 2>/dev/null || true
    fi
    rm -rf "$scratch"
    exit $code
}
trap finish EXIT

echo "installing the clients (pinned, outside the tree)"
bash install.sh "$cache"
export PATH=$cache/node/node_modules/.bin:$cache/npm/node_modules/.bin:$PATH
echo "clients ready after $((SECONDS - begun)) s"

# --- a system as the README sets it up, with an upstream and a model beside it ---------------------
export CLAVIGER_HOME=$scratch/home HOME=$scratch/user
mkdir -p "$HOME" "$scratch/upstream" "$scratch/model" "$scratch/out"
python3 -c 'import secrets; print(end="sk-upstream-" + secrets.token_hex(20))' >"$scratch/key"
key_sha256=$(sha256sum "$scratch/key" | cut -d ' ' -f 1)

# stage NAME: starts one of the demo's programs with its script and waits for its address.
stage() {
    "$program" stage "$1" "$scratch/$1/script.json" >"$scratch/$1/log" 2>&1 &
    started+=($!)
    for _ in $(seq 200); do
        [ -s "$scratch/$1/address" ] && return 0
        sleep 0.05
    done
    cat "$scratch/$1/log" >&2
    return 1
}
cat >"$scratch/upstream/script.json" <<JSON
{"listen": "127.0.0.1:0", "address_file": "$scratch/upstream/address", "record": "$scratch/upstream/requests.jsonl", "key_sha256": "$key_sha256"}
JSON
cat >"$scratch/model/script.json" <<JSON
{"listen": "127.0.0.1:0", "address_file": "$scratch/model/address", "record": "$scratch/model/requests.jsonl", "key_sha256": null, "turns": [
  [{"type": "text", "text": "I file the issue."}, {"type": "tool_use", "name": "mcp__claviger__tracker_create_issue", "input": {"title": "Filed by Claude Code"}}],
  [{"type": "text", "text": "The debug endpoint, too."}, {"type": "tool_use", "name": "mcp__claviger__tracker_debug_echo", "input": {}}],
  [{"type": "text", "text": "The issue is filed."}]]}
JSON
stage upstream
stage model
upstream=$(cat "$scratch/upstream/address")
sed "s/UPSTREAM/$upstream/" "$here/tracker.toml" >"$scratch/tracker.toml"

"$program" init --no-input --json >/dev/null
"$program" up --detach --listen 127.0.0.1:0 --mcp-listen 127.0.0.1:0 --json >"$scratch/up.json"
"$program" secret add tracker --kind bearer --host "$upstream" --json <"$scratch/key" >/dev/null
"$program" tool add http "$scratch/tracker.toml" --json >/dev/null
mcp=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["mcp"])' "$scratch/up.json")
export CLAVIGER_TEST_PROGRAM=$program CLAVIGER_TEST_MCP=$mcp CLAVIGER_TEST_SCRATCH=$scratch

# created TITLE COUNT: the upstream took that issue so many times, each with the real key.
created() {
    python3 "$here/created.py" "$scratch" "$1" "$2"
}
export -f created
export here scratch

for client in claude-code inspector python-sdk; do
    clock=$SECONDS
    case $client in
    claude-code) bash "$here/claude_code.sh" ;;
    inspector) bash "$here/inspector.sh" ;;
    python-sdk) "$cache/venv/bin/python" "$here/python_sdk.py" ;;
    esac
    echo "ok: $client ($((SECONDS - clock)) s)"
done

# The upstream's record and the reader's own file have the key; nothing else that anybody wrote may.
python3 "$here/../support/absent.py" "$scratch/key" "$scratch/user" "$scratch/out" "$scratch/model" "$scratch/home"
"$program" audit verify --json >"$scratch/audit.json"
echo "the audit log of all this verifies"
