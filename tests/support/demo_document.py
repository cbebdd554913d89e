"""Judges the document of `claviger demo --json` from outside: demo_document.py FILE"""

import json
import sys


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        document = json.loads(file.read())
    scan, recovery, session = document["leak_scan"], document["recovery"], document["session"]
    steps, places = document["steps"], scan["places"]
    checks = {
        "schema": document["schema"] == "claviger.demo/v1",
        "ok": document["ok"] is True,
        "under 10 s": 0 < document["elapsed_ms"] < 10_000,
        "session ended its turn": session["status"] == "idle" and session["stop_reason"] == "end_turn",
        "two epochs": session["epochs"] == 2,
        "time to first token": document["ttft_ms"] > 0,
        "every step": bool(steps) and all(step["ok"] for step in steps),
        "every way out": {step["via"] for step in steps} == {"sandbox", "mcp", "egress"},
        "harness killed": recovery["killed"] == "harness" and recovery["at_event"] > 0 and recovery["resumed_ms"] > 0,
        "no event lost": recovery["events_lost"] == 0,
        "no effect doubled": recovery["effects_doubled"] == 0,
        "credentials used": bool(document["credentials"])
        and all(one["uses"] > 0 and one["upstream_saw_real_key"] for one in document["credentials"]),
        "no leak": scan["hits"] == 0,
        "control found": scan["control_found"] is True,
        "no empty place": len(places) >= 12 and all(place["bytes"] > 0 for place in places),
        "forms": "raw" in scan["forms"] and len(scan["forms"]) >= 8,
        "audit verified": document["audit"]["verified"] is True and document["audit"]["records"] > 0,
        "altered audit refused": document["audit"]["tampered_copy_detected"] is True,
    }
    broken = [name for name, holds in checks.items() if not holds]
    print(
        f"demo: {document['elapsed_ms']} ms, ttft {document['ttft_ms']} ms, {session['events']} events, resumed in "
        f"{recovery['resumed_ms']} ms, {scan['bytes']} bytes searched in {len(places)} places, {scan['hits']} hits"
    )
    if broken:
        print("does not hold:", ", ".join(broken))
        print(json.dumps(document, indent=1))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
