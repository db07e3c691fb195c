"""What is let through to a Gradio page, and what is not."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from litcifar import server
from litcifar.errors import MachineError
from litcifar.server import MAX_REQUEST, MAX_UPLOAD_REQUEST, Gate, listen

HERE = "http://127.0.0.1:7860"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    (tmp_path / "uploads").mkdir()
    return TestClient(Gate(echo, {"127.0.0.1", "localhost"}, tmp_path / "uploads", {0, 1}), base_url=HERE)


def test_what_a_page_needs_is_let_through(client: TestClient) -> None:
    for path in (
        "/",
        "/config",
        "/theme.css",
        "/assets/a/b.js",
        "/static/img/x.png",
        "/gradio_api/heartbeat/a1",
        "/?a=b",
    ):
        assert client.get(path).status_code == 200
    body = json.dumps({"data": [1], "fn_index": 0}).encode()
    answer = client.post("/gradio_api/queue/join", content=body, headers={"Origin": HERE})
    assert (answer.status_code, answer.content) == (200, body)
    assert client.post("/gradio_api/upload", content=b"x" * MAX_UPLOAD_REQUEST).status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        *("/login", "/monitoring", "/docs", "/openapi.json", "/runs", "/manifest.json", "/svelte/x", "/static"),
        *("/gradio_api/proxy=http://evil", "/gradio_api/file=http://evil/x", "/gradio_api/file=HTTPS:/evil"),
        *("/gradio_api/info", "/gradio_api/vibe-code", "/gradio_api/call/of_file", "/gradio_api/deep_link", "/token"),
    ],
)
def test_other_pages_are_not_there(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post(path, json={}).status_code == 404


def test_writing_where_a_page_reads_is_refused(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/", content=b"{}").status_code == 404
    assert client.get("/gradio_api/upload").status_code == 404


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:7860", "127.0.0.1.evil.com", "127.0.0.2", "", "[::1]:7860", "]"]
)
def test_a_page_under_another_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 403


def test_a_request_of_another_sites_page_is_refused(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "localhost:1"}).status_code == 200
    for origin in ("http://evil.com", "null", "https://127.0.0.1:7860", "http://127.0.0.1:80", "http://localhost:7860"):
        assert client.post("/gradio_api/queue/join", json={}, headers={"Origin": origin}).status_code == 403


def test_what_is_too_long_is_refused(client: TestClient) -> None:
    answer = client.post("/gradio_api/upload", content=b"x" * (MAX_UPLOAD_REQUEST + 1))
    assert (answer.status_code, answer.text) == (413, "a file may have 10 MB")
    assert client.post("/gradio_api/queue/join", content=b"x" * (MAX_REQUEST + 1)).status_code == 413
    chunks = client.post("/gradio_api/upload", content=iter([b"x"]))
    assert chunks.status_code == 411


@pytest.mark.parametrize(
    "value",
    [
        {"path": "/etc/passwd"},
        {"path": "http://evil.com/x.png"},
        {"path": None},
        {"path": "{uploads}/../secret"},
        {"path": "{uploads}/link"},
        {"data": [[{"image": {"path": "/etc/passwd"}}]]},
        {"path": "{uploads}/a.png", "deeper": {"path": "/etc/passwd"}},
    ],
)
def test_a_file_that_was_not_uploaded_is_refused(client: TestClient, tmp_path: Path, value: dict[str, Any]) -> None:
    (tmp_path / "uploads" / "link").symlink_to("/etc/passwd")
    text = json.dumps({"data": [value], "fn_index": 1}).replace("{uploads}", str(tmp_path / "uploads"))
    assert client.post("/gradio_api/queue/join", content=text).status_code == 400


def test_an_uploaded_file_is_let_through(client: TestClient, tmp_path: Path) -> None:
    value = {"path": f"{tmp_path}/uploads/ab/photo.png", "meta": {"_type": "gradio.FileData"}}
    assert client.post("/gradio_api/queue/join", json={"data": [value], "fn_index": 1}).status_code == 200
    for text in ("no JSON", "[" * 100_000, "", "[]", "{}", '{"fn_index": 2}', '{"fn_index": []}', "\xff"):
        assert client.post("/gradio_api/queue/join", content=text).status_code == 400


def test_a_port_that_is_taken_is_one_line() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert port > 0
        with pytest.raises(
            MachineError, match=rf"on 127\.0\.0\.1, port {port} \(.+\) - set port=0 for any free one"
        ) as e:
            listen("127.0.0.1", port)
    assert e.value.exit_code == 6


def test_a_host_that_is_not_this_machines_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: Any, **options: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(
        MachineError, match=r"192\.0\.2\.1, port 0 .* - use host=127\.0\.0\.1$"
    ):  # of RFC 5737: nobody's
        listen("192.0.2.1", 0)
    monkeypatch.setattr(socket, "create_server", unknown)
    with pytest.raises(MachineError, match=r"on nowhere, port 0 \(Name or service not known\) - use host=127\.0\.0\.1"):
        listen("nowhere", 0)


def test_a_full_disk_of_uploads_is_refused(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_KEPT", 9)
    (tmp_path / "uploads" / "a").mkdir()
    (tmp_path / "uploads" / "a" / "photo.png").write_bytes(b"x" * 9)
    assert client.post("/gradio_api/upload", content=b"x").status_code == 200
    (tmp_path / "uploads" / "a" / "photo.png").write_bytes(b"x" * 10)
    assert client.post("/gradio_api/upload", content=b"x").status_code == 503
