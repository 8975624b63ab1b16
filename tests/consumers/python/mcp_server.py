"""An MCP server behind a check of the token: `mcp_server.py FILE` accepts the token in FILE, and refuses all others with 401."""

import hashlib
import sys
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import MCPServer

ACCEPTED = Path(sys.argv[1])
server = MCPServer("billing")


@server.tool()
def prices() -> str:
    """Says which token is accepted, without saying the token."""
    return hashlib.sha256(ACCEPTED.read_bytes()).hexdigest()


inner = server.streamable_http_app()


async def checked(scope, receive, send):
    if scope["type"] == "http" and dict(scope["headers"]).get(b"authorization") != b"Bearer " + ACCEPTED.read_bytes():
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    else:
        await inner(scope, receive, send)


uvicorn.run(checked, host="127.0.0.1", port=0)
