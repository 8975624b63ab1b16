"""Calls a tool of an MCP server every second, in one session. Needs the MCP SDK for Python, version 2."""

import asyncio
from pathlib import Path

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


class FromFile(httpx2.Auth):
    def auth_flow(self, request):
        token = Path("/var/run/idtoken/token").read_text()  # for each request: it is renewed twice an hour
        request.headers["Authorization"] = f"Bearer {token}"
        yield request


async def main():
    async with httpx2.AsyncClient(auth=FromFile(), timeout=30) as http:
        async with Client(streamable_http_client("https://billing-x.run.app/mcp", http_client=http)) as client:
            while True:
                result = await client.call_tool("prices", {})
                print(result.content[0].text, flush=True)
                await asyncio.sleep(1)


asyncio.run(main())
