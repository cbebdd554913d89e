#!/usr/bin/env bash
# The MCP Inspector's command line: both eras of the protocol, over the shim and over HTTP.
set -euo pipefail
bearer="Authorization: Bearer $(cat "$CLAVIGER_HOME/api-key")"

for era in legacy modern auto; do
    for transport in stdio http; do
        name=$transport-$era
        if [ "$transport" = stdio ]; then
            server=("$CLAVIGER_TEST_PROGRAM" mcp -e "CLAVIGER_HOME=$CLAVIGER_HOME")
        else
            server=(--server-url "$CLAVIGER_TEST_MCP" --transport http --header "$bearer")
        fi
        inspect() {
            timeout 60 mcp-inspector --cli "${server[@]}" --protocol-era "$era" --format json "$@"
        }
        inspect --method tools/list --strict >"$scratch/out/$name-list" 2>"$scratch/out/$name-list.err"
        inspect --method tools/call --tool-name tracker_create_issue --tool-arg "title=Inspector $name" >"$scratch/out/$name-call"
        inspect --method tools/call --tool-name tracker_debug_echo >"$scratch/out/$name-echo"
        python3 - "$scratch/out/$name" "Inspector $name" <<'PYTHON'
import json, sys

place, title = sys.argv[1], sys.argv[2]


def result(what):
    with open(f"{place}-{what}", encoding="utf-8") as file:
        return json.load(file)["result"]


names = [tool["name"] for tool in result("list")["tools"]]
assert names == ["tracker_create_issue", "tracker_debug_echo", "tracker_list_issues"] or sorted(names) == [
    "tracker_create_issue",
    "tracker_debug_echo",
    "tracker_list_issues",
], names
call = result("call")
assert not call.get("isError") and call["structuredContent"]["title"] == title, call
echo = result("echo")
assert not echo.get("isError") and "[scrubbed:tracker]" in json.dumps(echo), echo
PYTHON
        created "Inspector $name" 1
        echo "inspector: $transport, $era"
    done
done

# Without the key there is nothing to list.
if timeout 60 mcp-inspector --cli --server-url "$CLAVIGER_TEST_MCP" --transport http --method tools/list --format json \
    --stored-auth-only >"$scratch/out/no-key" 2>&1; then
    echo "tools were listed without a key" >&2
    exit 1
fi
