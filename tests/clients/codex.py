"""Codex, with a scripted model on loopback, calls firn's tool in a jail and in a vm and is given the answer.

    model (here) <-- POST /v1/responses -- codex exec -- stdio --> firn mcp

Codex reads the configuration that `firn mcp install codex` writes.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRN, CODEX = sys.argv[1:]
PATIENCE = 300


def events(item):
    """A model's answer, as Codex reads it."""
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    done = {"id": "r", "usage": usage}
    for event in [
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.output_item.done", "item": item},
        {"type": "response.completed", "response": done},
    ]:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


class Model(ThreadingHTTPServer):
    """Asks for one call of the tool, and then is content."""

    def __init__(self, arguments):
        super().__init__(("127.0.0.1", 0), Handler)
        self.arguments = arguments
        self.asked = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        answered = any(item.get("type") == "function_call_output" for item in asked["input"])
        if answered:
            said = {"type": "output_text", "text": "done"}
            item = {"type": "message", "role": "assistant", "id": "m", "content": [said]}
        else:
            item = {
                "type": "function_call",
                "call_id": "c",
                "namespace": "mcp__firn",
                "name": "run",
                "arguments": json.dumps(self.server.arguments),
            }
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in events(item):
            self.wfile.write(event)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


def configure(port):
    folder = os.path.join(os.environ["HOME"], ".codex")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.toml"), "w") as config:
        config.write(
            f"""model = "scripted"
model_provider = "scripted"
[model_providers.scripted]
name = "scripted"
base_url = "http://127.0.0.1:{port}/v1"
env_key = "SCRIPTED_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
supports_websockets = false
"""
        )
    # Codex passes few variables on; these say where this test's daemon is.
    subprocess.run([FIRN, "mcp", "install", "codex"], check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(folder, "config.toml"), "a") as config:
        config.write("[mcp_servers.firn.env]\n")
        for name in os.environ:
            if name.startswith("FIRN_"):
                config.write(f"{name} = {json.dumps(os.environ[name])}\n")


def ask(isolation):
    code = "print(6 * 7)"
    model = Model({"code": code, "env": "python", "isolation": isolation})
    threading.Thread(target=model.serve_forever, daemon=True).start()
    configure(model.server_address[1])
    command = [CODEX, "exec", "--json", "--skip-git-repo-check"]
    command += ["--dangerously-bypass-approvals-and-sandbox", "compute"]
    done = subprocess.run(
        command,
        env={**os.environ, "SCRIPTED_KEY": "none"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    model.shutdown()
    told = [item for asked in model.asked for item in asked["input"] if item.get("type") == "function_call_output"]
    assert done.returncode == 0 and told, f"{done.stdout}\n{done.stderr}\n{json.dumps(model.asked)[:4000]}"
    output = json.dumps(told[-1]["output"])
    assert "42" in output and isolation in output, output
    print(f"codex: {isolation}: {output[:200]}")


for isolation in ["jail", "vm"]:
    ask(isolation)
