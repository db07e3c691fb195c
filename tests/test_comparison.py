"""litcifar-compare: the page, and the paired test of two runs."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from litcifar import training
from litcifar.comparison import compare
from litcifar.results import pairing
from litcifar.results.leaderboard import find_runs, rank
from litcifar.results.page import cost_charts, curves_of, names_of, si
from litcifar.results.pairing import Paired, paired
from tests.conftest import Compose
from tests.results.test_leaderboard import write_run


class Page(HTMLParser):
    """Cells of the tables by row, links, and sources of images."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.resources: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "a":
            self.links.append(values["href"])
        elif tag == "img":
            self.images.append(values["src"])
        elif tag in ("script", "link", "iframe"):
            self.resources.append(tag)

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def write_history(folder: Path, accs: list[float]) -> None:
    lines = ["epoch,train/acc,val/acc", *(f"{epoch},0.5,{acc}" for epoch, acc in enumerate(accs, 1))]
    (folder / "metrics.csv").write_text("\n".join(lines))


def test_the_page_holds_the_table_the_charts_and_links_to_the_runs(tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_run(tmp_path / "runs" / f"a b_{seed}", seed, 0.7 + seed / 50, flops=803_200)
        write_history(folder, [0.5, 0.7 + seed / 50])
    big = write_run(tmp_path / "runs" / "big", 5, 0.8, name="big", params=12_000_000, train_seconds=500.0, flops=10**9)
    write_history(big, [0.6, 0.8])
    compare([tmp_path / "runs"], tmp_path / "board.csv")
    page = Page(tmp_path / "board.html")
    header, first, second = page.rows
    assert header[:6] == ["#", "name", "differs in", "data", "n", "val acc, %"]
    assert first[1:2] + first[4:6] + first[7:10] == ["big", "1", "80.00", "12,000,000", "1 G", "8.3 min"]
    assert second[4:10] == ["2", "71.00 ± 1.41", "45.00 ± 0.00", "1,578,506", "803 k", "30.5 s"]
    assert page.links == ["runs/big/", "runs/a%20b_0/", "runs/a%20b_1/"]
    assert len(page.images) == 4
    assert all(image.startswith("data:image/png;base64,iVBOR") for image in page.images)
    assert not page.resources


def test_the_page_shows_names_literally_and_needs_no_network(tmp_path: Path) -> None:
    write_run(tmp_path / "a", name="<script>alert(1)</script>")
    compare([tmp_path])
    text = (tmp_path / "leaderboard.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"https?://", text)


def test_older_runs_have_no_flops_and_no_history(tmp_path: Path) -> None:
    write_run(tmp_path / "a", val=0.8, params=10)
    write_run(tmp_path / "b", val=0.7, name="b", params=20)
    rows = rank(find_runs([tmp_path])[0])
    assert [row.flops for row in rows] == [None, None]
    assert list(cost_charts(rows, names_of(rows))) == ["Accuracy against parameters"]  # both took 30 s
    assert curves_of(rows, ["a", "b"]) == {}
    write_history(tmp_path / "b", [0.5, 0.6])
    assert curves_of(rows, ["a", "b"]) == {"b": [{1: 0.5, 2: 0.6}]}
    (tmp_path / "b" / "metrics.csv").unlink()
    compare([tmp_path])
    assert len(Page(tmp_path / "leaderboard.html").images) == 1


def test_cost_charts_draw_each_row_with_its_deviations(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", seed, 0.7 + seed / 50, name="a", params=1_000_000)  # 30 and 31 s
    write_run(tmp_path / "b", val=0.5, name="b", params=10_000, train_seconds=60.0)
    write_run(tmp_path / "c", val=None, name="c")
    rows = rank(find_runs([tmp_path])[0])
    charts = cost_charts(rows, names_of(rows))
    axes = charts["Accuracy against training time"].axes[0]
    points = [(container.lines[0].get_xdata()[0], container.lines[0].get_ydata()[0]) for container in axes.containers]  # type: ignore[attr-defined]
    assert points == [(30.5, pytest.approx(71)), (60, pytest.approx(50))]
    _, _, (seconds, accuracy) = axes.containers[0]
    assert [x for x, _ in seconds.get_segments()[0]] == pytest.approx([30.5 - 0.5**0.5, 30.5 + 0.5**0.5])
    assert [y for _, y in accuracy.get_segments()[0]] == pytest.approx([71 - 2**0.5, 71 + 2**0.5])
    assert charts["Accuracy against parameters"].axes[0].get_xscale() == "log"


def test_names_in_charts_are_short_and_tell_rows_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", val=0.9, config={"optim.lr": 0.1})
    write_run(tmp_path / "b", val=0.8, config={"optim.lr": 0.2})
    rows = rank(find_runs([tmp_path])[0])
    assert names_of(rows) == ["1 lr=0.1", "2 lr=0.2"]
    write_run(tmp_path / "d", val=0.6, config={"optim.lr": 0.2, "optim._target_": "torch.optim.SGD"})
    assert names_of(rank(find_runs([tmp_path])[0]))[2] == "3 SGD lr=0.2"
    (tmp_path / "d" / "metrics.json").unlink()
    write_run(tmp_path / "c", val=0.7, name="a_very_long_name_of_a_network_of_mine")
    rows = rank(find_runs([tmp_path])[0])
    assert names_of(rows) == ["1 mlp lr=0.1", "2 mlp lr=0.2", "3 a_very_long_name_of_a_network_o…"]
    write_run(tmp_path / "d", val=0.6, config={"model.hidden": [1024, 1024, 1024, 1024, 1024]})
    assert names_of(rank(find_runs([tmp_path])[0]))[3] == "4 mlp"
    assert names_of(rows * 5)[-1] == "#3"


@pytest.mark.parametrize(
    ("number", "text"), [(None, ""), (0, "0"), (803_200, "803 k"), (11_173_962, "11.2 M"), (2e9, "2 G"), (3e12, "3 T")]
)
def test_numbers_with_prefixes(number: float | None, text: str) -> None:
    assert si(number) == text


# Two runs


def test_the_paired_test_says_in_words_whether_the_difference_is_real() -> None:
    real = Paired("test", both=7508, only_a=812, only_b=590, neither=1090)
    assert real.words().startswith(
        "A 83.2 %, B 81.0 % of 10,000 test images; 812 only A right, 590 only B; p = 3.3e-09: the difference is real "
    )
    chance = Paired("val", both=50, only_a=1, only_b=7, neither=42)
    assert chance.p == pytest.approx(18 / 256)
    assert "p = 0.07: no difference can be told from chance between these two networks" in chance.words()
    assert "only several seeds of each can tell" in chance.words()


def test_two_runs_are_compared_image_by_image(
    compose: Compose, tmp_path: Path, tiny_cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model=mlp", "model.hidden=[8]", "trainer.max_epochs=1"]
    trained = {
        name: training.train(compose(*small, *more), tmp_path / name)
        for name, more in {
            "a": ["seed=1"],
            "b": ["seed=2", "model.hidden=[16]"],
            "untested": ["test=false"],
            "classes": ["data.classes=[cat,dog]"],
            "split": ["test=false", "data.split_seed=1"],
        }.items()
    }
    compare([tmp_path / "a", tmp_path / "b"])
    *_, words = capsys.readouterr().out.splitlines()
    accs = [f"{letter} {100 * trained[name]['test/acc']:.1f} %" for letter, name in (("A", "a"), ("B", "b"))]
    assert f"{', '.join(accs)} of 40 test images" in words
    assert words.startswith(f"A = {tmp_path / 'a'}, B = {tmp_path / 'b'}: ")
    assert "of 40 test images" in (tmp_path / "a" / "leaderboard.html").read_text()

    on_val = paired([tmp_path / "a", tmp_path / "untested"])
    assert (on_val.split, on_val.count) == ("val", 50)
    assert (on_val.both + on_val.only_a, on_val.both + on_val.only_b) == tuple(
        round(50 * trained[name]["val/acc"]) for name in ("a", "untested")
    )
    assert on_val.only_a + on_val.only_b > 0
    for other, reason in {"classes": "different test images", "split": "different val images"}.items():
        compare([tmp_path / "a", tmp_path / other])
        *_, last = capsys.readouterr().out.splitlines()
        assert last == f"no paired test: the two runs have {reason} - give two runs with the same split"
    (tmp_path / "b" / "best.ckpt").unlink()
    compare([tmp_path / "a", tmp_path / "b"])
    assert "no paired test: no checkpoint" in capsys.readouterr().out


def test_a_paired_test_that_fails_costs_no_leaderboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "own.npy")

    for name in "ab":
        write_run(tmp_path / name, 1)
    monkeypatch.setattr(pairing, "paired", fails)
    compare([tmp_path / "a", tmp_path / "b"])
    assert "no paired test: [Errno 2] No such file or directory: 'own.npy' - put it there" in capsys.readouterr().out
    assert (tmp_path / "a" / "leaderboard.csv").is_file()


def test_runs_on_different_images_are_not_compared(
    compose: Compose, tmp_path: Path, tiny_image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.train(compose("model=mlp", "model.hidden=[8]", "trainer.max_epochs=1"), tmp_path / "a")
    images = ["data=image_folder", f"data.root={tiny_image_folder}", "data.val_size=10", "logger=none"]
    other = compose(*images, "model=mlp", "model.hidden=[8]", "trainer.max_epochs=1", "data.batch_size=16", tiny=False)
    training.train(other, tmp_path / "b")
    compare([tmp_path / "a", tmp_path / "b"])
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "no paired test: the two runs read different images - give two runs on the same data"
