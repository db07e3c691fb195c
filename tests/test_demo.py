"""The page to try a network on images: what it answers, what it shows, and a browser that uses it."""

import base64
import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from litcifar import demo as demo_module
from litcifar import training
from litcifar.checkpoints import load
from litcifar.config import DemoConfig, WhereConfig, check, train_config
from litcifar.data import cifar10_archive, cifar10_files
from litcifar.demo import answer, demo, examples_of, known_of, png_of
from litcifar.errors import MachineError
from litcifar.keys import compose
from litcifar.models import ImageClassifier
from litcifar.prediction import rows_of
from litcifar.server import MAX_UPLOAD, listen
from tests.conftest import DEMO, run_forked
from tests.test_prediction import BAD, GOOD, photo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
SECONDS = 60


@pytest.fixture(scope="module")
def run(tiny_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    overrides = ["model=mlp", "model.hidden=[8]", "trainer.max_epochs=1", "data.val_size=50", "data.verify=false"]
    training.train(train_config(f"data.root={tiny_cifar10}", *overrides, "logger=none"), folder)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> ImageClassifier:
    return load(run).model


def config(run: Path, *overrides: str) -> DemoConfig:
    return check(compose("demo", f"ckpt={run}", *overrides), DemoConfig)


@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith(("format", "turned", "16", "alpha"))])
def test_an_answer_is_that_of_litcifar_predict(model: ImageClassifier, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    GOOD[name](path)
    (row,) = rows_of(model, [path], 10, "mirror")
    shares, html = answer(model, path, "mirror")
    assert shares == dict(row.answers)
    assert row.note in html
    assert "32 x 32 pixels" in html


def test_the_image_as_the_network_sees_it_is_shown(model: ImageClassifier, tmp_path: Path) -> None:
    pixels = photo(32, 32)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    _, html = answer(model, tmp_path / "photo.png", "none")
    found = re.search('src="data:image/png;base64,([^"]+)"', html)
    assert found
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1])))), pixels)


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_a_line_without_a_path(model: ImageClassifier, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    make, reason = BAD[name]
    make(path)
    shares, html = answer(model, path, "none")
    assert shares is None
    assert 'role="alert"' in html
    assert str(tmp_path) not in html
    assert reason in html
    assert len(html.strip().splitlines()) == 1


def test_a_bug_is_a_line_on_the_terminal_and_a_general_one_on_the_page(
    model: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError(f"secret {tmp_path}")

    monkeypatch.setattr(demo_module, "probabilities", fails)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shares, html = answer(model, tmp_path / "a.png", "none")
    assert shares is None
    assert "secret" not in html
    assert "That did not work" in html
    assert re.fullmatch(
        r"error: RuntimeError: secret .+ - this is a bug, in litcifar or in code of yours; .+\n",
        capsys.readouterr().err,
    )


def test_a_drawing_is_a_png_file_and_nothing_else() -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    code = base64.b64encode(file.getvalue()).decode()
    assert png_of(f"data:image/png;base64,{code}") == file.getvalue()
    others: tuple[Any, ...] = (
        "",
        "data:image/png;base64,%",
        f"data:text/html;base64,{code}",
        f"http://a/,{code}",
        None,
        3,
        {},
    )
    for address in others:
        assert png_of(address) == b""


def test_examples_are_the_first_test_images_of_each_class(run: Path, tiny_cifar10: Path) -> None:
    checkpoint = load(run)
    examples = examples_of(checkpoint.config, checkpoint.provenance.fingerprint, config(run).data)
    assert examples.note == ""
    assert examples.images_NHWC.shape == (30, 32, 32, 3)
    assert examples.labels[:4] == ["airplane", "airplane", "airplane", "automobile"]
    _, _, images, labels = cifar10_files.read(tiny_cifar10, verify=False)
    np.testing.assert_array_equal(examples.images_NHWC[:3], images[labels == 0][:3])
    np.testing.assert_array_equal(examples.images_NHWC[-3:], images[labels == 9][:3])
    note = examples_of(checkpoint.config, "another", config(run).data).note
    assert note == "These are not the images that it was trained on."


def test_examples_of_shapes_and_of_some_classes() -> None:
    trained = train_config("data=shapes", "data.classes=[star,ring]")
    where = WhereConfig(root=None, verify=None)
    examples = examples_of(trained, "", where)
    assert examples.labels == ["star"] * 15 + ["ring"] * 15
    assert examples.images_NHWC.dtype == np.uint8


def test_examples_are_never_downloaded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(cifar10_archive, "fetch", fetch)
    where = config(run, f"data.root={tmp_path / 'nowhere'}").data
    examples = examples_of(load(run).config, "", where)
    assert not len(examples.labels)
    assert examples.why.startswith("none: there is no folder ")
    assert "set data.root to the folder" in examples.why
    assert examples.note.startswith("There are no examples: ")
    assert str(tmp_path) not in examples.note


def test_what_is_known_of_a_network(run: Path, tmp_path: Path) -> None:
    known = known_of(load(run))
    metrics = json.loads((run / "metrics.json").read_text())
    assert known.facts["test accuracy"] == f"{100 * metrics['test/acc']:.2f} %"
    assert known.facts["parameters"] == f"{3072 * 8 + 8 + 8 * 10 + 10:,}"
    assert list(known.figures)[:2] == ["curves", "confusion_matrix"]
    assert len(known.figures) == len(list((run / "figures").iterdir()))
    assert known.note == ""

    shutil.copy(run / "best.ckpt", tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "page.png").write_text("<script>")
    (tmp_path / "metrics.json").write_text("{")
    alone = known_of(load(tmp_path))
    assert not alone.figures
    assert "test accuracy" not in alone.facts
    assert alone.note.startswith("There is no metrics.json")
    assert known_of(load(run / "last.ckpt")).figures == {}


def test_a_missing_gradio_is_named_with_how_to_install_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"^litcifar-demo needs gradio - pip install 'litcifar\[demo\]'$"):
        demo(config(run))


def test_a_port_that_is_taken_is_known_before_gradio_is_imported(run: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"nothing can be served on 127.0.0.1, port {port}"):
            demo(config(run, f"port={port}"))


class Served:
    """`litcifar-demo` in a process forked from this one: it has imported all but Gradio."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = get_context("fork").Process(target=self._main, args=(arguments,))
        self.process.start()
        for _ in range(10 * SECONDS):
            if found := re.search(r"demo +(\S+) - Ctrl-C ends it\n", self.text("out")):
                self.address = found[1]
                return
            assert self.process.is_alive(), self.text("err")
            self.process.join(0.1)
        self.end(signal.SIGKILL)
        raise AssertionError(f"it does not start: {self.text('out')}")

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def end(self, number: int) -> int | None:
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        self.process.join(SECONDS)
        return self.process.exitcode

    def _main(self, arguments: tuple[str, ...]) -> None:
        os.chdir(self.folder)
        (self.folder / "tmp").mkdir()
        tempfile.tempdir = str(self.folder / "tmp")
        warnings.resetwarnings()  # to Python's own
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        run_forked(DEMO, arguments, output="")


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    process = Served(tmp_path_factory.mktemp("served"), f"ckpt={run}", "port=0", "accelerator=cpu")
    yield process
    process.end(signal.SIGKILL)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(photo()).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine")
def test_the_page_in_a_browser(served: Served, model: ImageClassifier, image: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    (row,) = rows_of(model, [image], 10)
    asked, wrong = [], []
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS)) as browser,
    ):
        browser_page = browser.new_page(viewport={"width": 1200, "height": 900})
        browser_page.set_default_timeout(1000 * SECONDS)
        expect.set_options(timeout=1000 * SECONDS)
        browser_page.on("request", lambda request: asked.append(request.url))
        browser_page.on("pageerror", lambda error: wrong.append(str(error)))
        browser_page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        browser_page.goto(served.address)
        tabs = browser_page.get_by_role("tabpanel").filter(visible=True)
        expect(browser_page.get_by_role("heading", level=1)).to_have_text("mlp")

        # An image: the class, and every probability as it is said.
        browser_page.set_input_files("#image input[type=file]", image)
        expect(tabs.locator("[data-testid=label-output-value]")).to_have_text(row.answers[0][0])
        said = [tabs.locator(part).all_inner_texts() for part in (".label .text", ".confidence")]
        assert said == [[name for name, _ in row.answers], [f"{round(100 * share)}%" for _, share in row.answers]]
        expect(tabs.locator(".seen img")).to_be_visible()

        # An example, and a file that is no image.
        browser_page.locator("#examples button").nth(3).click()
        expect(tabs.locator(".seen figcaption")).to_contain_text("True class: automobile.")
        (tmp_path / "bad.png").write_text("no image")
        browser_page.set_input_files("#image input[type=file]", tmp_path / "bad.png")
        expect(tabs.get_by_role("alert")).to_contain_text("The file is not an image of a known format")
        expect(tabs.locator(".confidence")).to_have_count(0)

        # A drawing.
        browser_page.get_by_role("tab", name="Draw").click()
        canvas = browser_page.locator("#draw canvas").bounding_box()
        assert canvas
        browser_page.mouse.move(canvas["x"] + 60, canvas["y"] + 60)
        browser_page.mouse.down()
        browser_page.mouse.move(canvas["x"] + 200, canvas["y"] + 160, steps=5)
        browser_page.mouse.up()
        expect(tabs.locator(".seen img")).to_be_visible()
        assert len(tabs.locator(".confidence").all()) == 10
        address = tabs.locator(".seen img").get_attribute("src") or ""
        pixels = np.asarray(Image.open(io.BytesIO(png_of(address))))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[8, 9, 2] > pixels[8, 9, 0] + 50  # the pen is blue

        browser_page.get_by_role("tab", name="About").click()
        expect(tabs.locator("img").first).to_be_visible()
        assert tabs.locator("img").count() == 8
        browser_page.set_viewport_size({"width": 420, "height": 900})
        width = browser_page.evaluate("document.documentElement.scrollWidth")
    assert width <= 420
    assert wrong == []
    assert [url for url in asked if not url.startswith((f"{served.address}/", "data:", "blob:"))] == []


def test_what_is_served_and_how_it_ends(served: Served, model: ImageClassifier, image: Path, run: Path) -> None:
    with httpx.Client(base_url=served.address, timeout=SECONDS) as client:
        settings = client.get("/config").json()
        (number,) = (fn["id"] for fn in settings["dependencies"] if any(t[1] == "input" for t in fn["targets"]))
        assert settings["analytics_enabled"] is False
        assert not re.search(f"{run}|{Path.home()}", client.get("/").text)

        # An upload is answered as litcifar-predict answers it, for many at once.
        (row,) = rows_of(model, [image], 10)
        with ThreadPoolExecutor(20) as pool:
            for shares in pool.map(lambda session: answer_of(client, image, number, session), map(str, range(60))):
                assert shares == pytest.approx(dict(row.answers), abs=1e-6)

        (upload,) = client.post("/gradio_api/upload", files={"files": b"x"}).json()
        assert client.get(f"/gradio_api/file={upload}").status_code == 200
        for path in ("/etc/passwd", f"{upload}/../../../../etc/passwd", f"{run}/best.ckpt", f"{run}/metrics.json", "."):
            assert client.get(f"/gradio_api/file={path}").status_code == 403
        too_large = client.post("/gradio_api/upload", files={"files": b"x" * (MAX_UPLOAD + 1)})
        assert too_large.status_code == 413
        assert client.get("/", headers={"Host": "evil.com"}).status_code == 403
        file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        event = {"data": [file], "fn_index": number, "session_hash": "x"}
        assert client.post("/gradio_api/queue/join", json=event).status_code == 400

    assert served.end(signal.SIGINT) == 130
    assert served.text("err") == "error: stopped by SIGINT - run the command again\n"
    assert len(served.text("out").splitlines()) == 2
    assert [path.name for path in served.folder.iterdir() if path.name not in ("out", "err")] == ["tmp"]
    assert not any((served.folder / "tmp").iterdir())


def answer_of(client: httpx.Client, image: Path, number: int, session: str) -> dict[str, float]:
    """What the page's own requests give for an image."""
    (path,) = client.post("/gradio_api/upload", files={"files": (image.name, image.read_bytes())}).json()
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    event = {"data": [file], "fn_index": number, "session_hash": session}
    client.post("/gradio_api/queue/join", json=event).raise_for_status()
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "process_completed":
                label = message["output"]["data"][0]
                return {each["label"]: each["confidence"] for each in label["confidences"]}
    raise AssertionError("no answer")
