"""firn mcp, as the Python SDK sees it: both eras of the protocol, progress, cancel, many calls at once."""

import asyncio
import os
import sys

import anyio
from mcp import Client, ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

SERVER = StdioServerParameters(command=sys.argv[1], args=["mcp"], env=dict(os.environ))
SLOW = "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.1)\n"
ENDLESS = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.1)"


def text(result):
    return result.content[0].text


async def use(client):
    """What both clients can do."""
    tools = (await client.list_tools()).tools
    assert [tool.name for tool in tools] == ["run"], tools
    called = await client.call_tool("run", {"code": "print(6 * 7)", "env": "python"})
    assert (text(called), called.is_error) == ("42\n", False), called
    assert called.structured_content["isolation"]["effective"] == "jail", called
    wrong = await client.call_tool("run", {"code": "raise ValueError('no')", "env": "python"})
    assert wrong.is_error and "ValueError: no" in text(wrong), wrong

    told = []

    async def tell(progress, _total, message):
        told.append((progress, message))

    await client.call_tool("run", {"code": SLOW, "env": "python"}, progress_callback=tell)
    assert [message for _, message in told] == ["0\n", "1\n", "2\n"], told
    assert sorted(told) == told, told

    answers = await asyncio.gather(
        *(client.call_tool("run", {"code": f"print({n})", "env": "python"}) for n in range(20))
    )
    assert [text(answer) for answer in answers] == [f"{n}\n" for n in range(20)], answers


async def cancel(session):
    """A call that is given up leaves its session as it was."""
    await session.call_tool("run", {"code": "x = 42", "env": "python", "session": "kept"})
    begun = anyio.Event()

    async def tell(_progress, _total, _message):
        begun.set()

    async with anyio.create_task_group() as tasks:

        async def endless():
            arguments = {"code": ENDLESS, "env": "python", "session": "kept"}
            await session.call_tool("run", arguments, progress_callback=tell)

        tasks.start_soon(endless)
        await begun.wait()
        tasks.cancel_scope.cancel()
    known = await session.call_tool("run", {"code": "x", "env": "python", "session": "kept"})
    assert text(known) == "42\n", known


async def main():
    async with stdio_client(SERVER) as (read, write), ClientSession(read, write) as session:
        hello = await session.initialize()
        assert hello.protocol_version == "2025-11-25", hello
        await use(session)
        await cancel(session)
    async with Client(SERVER) as client:
        assert client.protocol_version == "2026-07-28", client.protocol_version
        await use(client)
        await cancel(client)


asyncio.run(main())
