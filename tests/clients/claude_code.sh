#!/usr/bin/env bash
# Claude Code: installed by `claviger client install`, connects, calls the tool, never sees the key.
set -euo pipefail
program=$CLAVIGER_TEST_PROGRAM
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 ENABLE_TOOL_SEARCH=false
mkdir -p "$HOME/project"
cd "$HOME/project"

"$program" client install claude-code --dry-run --json >/dev/null
test ! -e "$HOME/.claude.json"
"$program" client install claude-code --json >"$scratch/out/install.json"
timeout 60 claude mcp list >"$scratch/out/claude-mcp-list" 2>&1
grep -E '^claviger: .*Connected' "$scratch/out/claude-mcp-list"

env ANTHROPIC_BASE_URL="http://$(cat "$scratch/model/address")" ANTHROPIC_API_KEY=sk-ant-not-a-real-key \
    timeout 120 claude -p "File an issue in the tracker." --model claude-sonnet-4-5 \
    --allowedTools mcp__claviger__tracker_create_issue,mcp__claviger__tracker_debug_echo --output-format json \
    >"$scratch/out/claude.json" 2>"$scratch/out/claude.err"
python3 - "$scratch" <<'PYTHON'
import json, sys

scratch = sys.argv[1]
with open(f"{scratch}/out/claude.json", encoding="utf-8") as file:
    result = json.load(file)
assert result["subtype"] == "success" and not result["is_error"], result
assert result["result"] == "The issue is filed.", result
with open(f"{scratch}/model/requests.jsonl", encoding="utf-8") as file:
    last = [json.loads(line)["request"] for line in file][-1]
results = [
    block for message in last["messages"] if isinstance(message["content"], list) for block in message["content"] if block["type"] == "tool_result"
]
assert len(results) == 2 and not any(block.get("is_error") for block in results), results
assert "Filed by Claude Code" in json.dumps(results[0]), results
assert "[scrubbed:tracker]" in json.dumps(results[1]), results
print(f"Claude Code called two tools in {result['duration_ms']} ms; the model read the results, the key scrubbed")
PYTHON
created "Filed by Claude Code" 1

# While it was used Claude Code wrote into its file; its own entries stay, ours goes.
"$program" client uninstall claude-code --json >/dev/null
! grep -q '"claviger"' "$HOME/.claude.json"
