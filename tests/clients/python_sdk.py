"""The official Python SDK: both eras of the protocol, over the shim and over HTTP."""

import asyncio
import os
import subprocess
import sys

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

PROGRAM, MCP = os.environ["CLAVIGER_TEST_PROGRAM"], os.environ["CLAVIGER_TEST_MCP"]
HOME, SCRATCH = os.environ["CLAVIGER_HOME"], os.environ["CLAVIGER_TEST_SCRATCH"]
HERE = os.path.dirname(os.path.abspath(__file__))


def over_http(key: str):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return streamable_http_client(MCP, http_client=httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False))


async def use(server, mode: str, title: str) -> None:
    async with Client(server, mode=mode, read_timeout_seconds=30) as client:
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        assert names == ["tracker_create_issue", "tracker_debug_echo", "tracker_list_issues"], names
        made = await client.call_tool("tracker_create_issue", {"title": title})
        assert not made.is_error and made.structured_content["title"] == title, made
        listed = await client.call_tool("tracker_list_issues", {})
        assert title in str(listed.structured_content), listed
        echo = await client.call_tool("tracker_debug_echo", {})
        assert not echo.is_error and "[scrubbed:tracker]" in str(echo.content), echo
        # A wrong argument is the caller's mistake and sends nothing.
        try:
            wrong = await client.call_tool("tracker_create_issue", {"titel": title})
            assert wrong.is_error, wrong
        except Exception as error:  # noqa: BLE001 - a protocol error is as good an answer
            assert "title" in str(error) or "titel" in str(error), error
    subprocess.run([sys.executable, f"{HERE}/created.py", SCRATCH, title, "1"], check=True)


async def refused(key: str) -> None:
    try:
        async with Client(over_http(key), mode="legacy", read_timeout_seconds=10) as client:
            await client.list_tools()
    except BaseException:  # noqa: BLE001 - the SDK raises a group
        return
    raise AssertionError(f"tools were listed with the key '{key}'")


async def main() -> None:
    with open(f"{HOME}/api-key", encoding="utf-8") as file:
        key = file.read().strip()
    for mode in ("legacy", "auto", "2026-07-28"):
        shim = StdioServerParameters(command=PROGRAM, args=["mcp"], env={"CLAVIGER_HOME": HOME})
        await use(shim, mode, f"Python stdio {mode}")
        await use(over_http(key), mode, f"Python http {mode}")
        print(f"python sdk: stdio and http, {mode}")
    await refused("")
    await refused("clv_0000000000000000000000000000000000000000")


asyncio.run(main())
