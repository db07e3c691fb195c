"""A Gradio page, served on this machine: what it needs is let through, and all else that Gradio would answer is not."""

import errno
import json
import re
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litcifar.errors import MachineError

if TYPE_CHECKING:
    import gradio as gr

MAX_UPLOAD = 10 * 2**20  # bytes of a file
MAX_UPLOAD_REQUEST = MAX_UPLOAD + 10_000  # with what a browser writes around it
MAX_REQUEST = 1_000_000  # bytes of any other request; a drawing has some ten thousand
MAX_KEPT = 1_000_000_000  # bytes of uploads on the disk, until the page's time for them is over
MAX_SESSIONS = 256  # of which Gradio keeps the state, 60 kB each
MAX_CONNECTIONS = 512  # an open page has three or four
GRACE_SECONDS = 1  # that an open page keeps the server from ending
UPLOAD = "/gradio_api/upload"
# Gradio also answers requests for addresses, for the code of the app and to change it, for its own API, and more.
READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/(assets|static)/.+"
    r"|/gradio_api/(startup-events|heartbeat/\w+|queue/data|upload_progress|file=(?!\w\w+:).+)"
)
WRITE = re.compile(rf"{UPLOAD}|/gradio_api/(queue/join|cancel)")
HEADERS = {  # Gradio writes scripts and styles into its page; the browser lets none of it speak with anybody else
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Gate:
    """Lets through what a page needs, from who opened it under one of `hosts`; the files it names lie in `uploads`.

    functions: the numbers of those that the page calls. A Host of another name is a foreign site's that lets its name
    point here (DNS rebinding); a foreign Origin is the page of one.
    """

    def __init__(self, app: ASGIApp, hosts: set[str], uploads: Path, functions: Collection[int]) -> None:
        self.app, self.hosts, self.uploads, self.functions = app, hosts, uploads.resolve(), functions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            refusal = self._refusal(request)
            if refusal is None and request.method == "POST" and scope["path"] != UPLOAD:
                body = await request.body()
                refusal = None if self._is_sound(body) else PlainTextResponse("not a request", 400)
                receive = _again(body, receive)
        except ClientDisconnect:
            return
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, request: Request) -> PlainTextResponse | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if re.sub(r":\d+$", "", host.lower()) not in self.hosts or origin not in (None, f"http://{host}"):
            return PlainTextResponse("this page is opened under another address", 403)
        allowed = {"GET": READ, "HEAD": READ, "POST": WRITE}.get(request.method)
        if allowed is None or not allowed.fullmatch(request.scope["path"]):
            return PlainTextResponse("there is no such page", 404)
        if request.method == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdecimal():
                return PlainTextResponse("a request says how long it is", 411)
            if int(length) > (MAX_UPLOAD_REQUEST if request.scope["path"] == UPLOAD else MAX_REQUEST):
                return PlainTextResponse(f"a file may have {MAX_UPLOAD // 1_000_000} MB", 413)
            if request.scope["path"] == UPLOAD and self._kept() > MAX_KEPT:
                return PlainTextResponse("too many images at once: come again in a minute", 503)
        return None

    def _is_sound(self, body: bytes) -> bool:
        """Whether it calls what there is, and each file in it was uploaded: Gradio would read or load any."""
        try:
            event = json.loads(body)
            return event.get("fn_index") in self.functions and all(
                isinstance(path, str) and Path(path).resolve().is_relative_to(self.uploads) for path in _paths(event)
            )
        except (ValueError, RecursionError, OSError, AttributeError, TypeError):
            return False

    def _kept(self) -> int:
        return sum(entry.stat().st_size for entry in self.uploads.rglob("*") if entry.is_file())


def application(page: "gr.Blocks", hosts: set[str], uploads: Path, **look: Any) -> Gate:
    """The page as an ASGI application. look: Gradio's `theme`, `css`, `js`."""
    import gradio as gr
    import gradio.queueing

    page.state_session_capacity = MAX_SESSIONS
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        **look,
    )
    page.has_launched = True  # `mount_gradio_app` leaves this out; without it Gradio does not look where a file lies
    gradio.queueing.traceback = SimpleNamespace(print_exc=_tell)  # type: ignore[assignment]  # pages of it otherwise
    return Gate(app, hosts, uploads, page.fns.keys())


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; MachineError where the port is taken or not ours, or the host is not this machine's."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        no_such_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        way_out = "use host=127.0.0.1" if no_such_host else "set port=0 for any free one, or another"
        raise MachineError(f"nothing can be served on {host}, port {port} ({error.strerror}) - {way_out}") from error


def serve(app: ASGIApp, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Answers until a signal comes, which then goes to who handled it before; `ready` is called once it answers."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config).run(sockets=[listening])


def _tell() -> None:
    """What went wrong in Gradio: a request that was written by hand, mostly."""
    error = sys.exc_info()[1]
    text = (str(error).splitlines() or [""])[0]
    print(f"warning: a request was not answered ({type(error).__name__}: {text})", file=sys.stderr)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read once more."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received


def _paths(value: Any) -> Iterator[Any]:
    """What JSON holds under `path`, however deep: with Gradio a file."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _paths(part)
