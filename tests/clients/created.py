"""Whether the upstream took an issue so many times, with the real key: created.py SCRATCH TITLE COUNT"""

import json
import sys
import urllib.request

scratch, title, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(f"{scratch}/key", encoding="utf-8") as file:
    key = file.read()
with open(f"{scratch}/upstream/address", encoding="utf-8") as file:
    address = file.read()
with open(f"{scratch}/upstream/requests.jsonl", encoding="utf-8") as file:
    record = [json.loads(line) for line in file]
if not all(line["authorization"] == f"Bearer {key}" and line["accepted"] for line in record):
    sys.exit("the upstream saw a request without the real key")
request = urllib.request.Request(f"http://{address}/api/issues", headers={"Authorization": f"Bearer {key}"})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(request, timeout=10) as response:
    issues = [issue for issue in json.load(response)["issues"] if issue["title"] == title]
if len(issues) != count:
    sys.exit(f"the upstream has {len(issues)} issues '{title}', not {count}")
