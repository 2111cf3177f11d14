"""``dnd-fast serve``: it serves, prints what vLLM needs, and refuses what would be unsafe."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import httpx
from typer.testing import CliRunner

from dnd_fast.cli import app
from dnd_fast.errors import InvalidInput

KEY = "a-key-that-is-long-enough"


def invoke(*arguments):
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def test_vllm_flags():
    result = invoke("--print-vllm-flags", "--capacity", 32)
    assert result.exit_code == 0
    assert result.output == (
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank=8 "
        "--max-loras=8 --max-cpu-loras=32\n"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "give --keys"),
        (["--engine", "sglang"], "must be 'transformers'"),
        (["--engine", "vllm"], "must be 'transformers'"),
        (["--engine", "vllm=http://127.0.0.1:9"], "no usable vLLM server"),
        (["--rate", "fast"], "600/minute"),
    ],
    ids=str,
)
def test_unusable_options(arguments, says):
    result = invoke(*arguments)
    assert isinstance(result.exception, InvalidInput)
    assert says in str(result.exception)


@pytest.mark.parametrize(
    "content", [b"short\n", b"\n", b"\xff" * 20], ids=["a short key", "no key", "no text"]
)
def test_unusable_keys(tmp_path, content):
    """A file without a key must not open the server to everybody."""
    file = tmp_path / "keys"
    file.write_bytes(content)
    result = invoke("--keys", file)
    assert isinstance(result.exception, InvalidInput)
    assert "key" in str(result.exception)  # also in the file's name


def test_it_serves_until_it_is_told_to_end(tmp_path):
    """As a process: with a key, the page and the embedded demo; ended as by Ctrl+C."""
    keys = tmp_path / "keys"
    keys.write_text(f"\n{KEY}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dnd_fast", "serve", "--port", str(port), "--keys", str(keys)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as web:
            for _ in range(3000):
                assert process.poll() is None, process.stdout.read()
                try:
                    health = web.get("/health")
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
            assert health.json()["status"] == "ok"
            body = {"dnd": {"prompts": [f"reverse the word {word}" for word in ("saw", "axe")]}}
            body["messages"] = [{"role": "user", "content": "reverse the word saw"}]
            assert web.post("/v1/chat/completions", json=body).status_code == 401
            headers = {"Authorization": f"Bearer {KEY}"}
            answer = web.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert json.loads(answer.text)["model"].startswith("dnd-")
            assert "text/html" in web.get("/").headers["content-type"]
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"Serving at http://127.0.0.1:{port}" in output
    assert "Traceback" not in output
