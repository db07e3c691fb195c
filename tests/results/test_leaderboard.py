"""The leaderboard: which runs it finds, how it groups, orders and shows them, and what it says of the others."""

import csv
import dataclasses
import io
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from litcifar.comparison import compare
from litcifar.config import plain, train_config
from litcifar.errors import CheckpointError, MachineError
from litcifar.results.leaderboard import find_runs, rank, table
from litcifar.results.page import names_of

CONFIG: dict[str, Any] = {
    "resume": None,
    "test": True,
    "logger": None,
    "data": {"root": "~/data", "mirrors": ["https://a"], "batch_size": 64, "split_seed": 42},
    "model": {"_target_": "litcifar.models.MLP", "hidden": [512, 256]},
    "optim": {"_target_": "torch.optim.Adam", "lr": 0.001},
}


def write_run(
    folder: Path,
    seed: int = 0,
    val: float | None = 0.5,
    config: dict[str, Any] | None = None,
    name: str = "mlp",
    test_acc: float | None = 0.45,
    **metrics: Any,
) -> Path:
    """Write a metrics.json; `config` holds the dotted keys that differ from CONFIG, `metrics` from the usual ones."""
    whole = json.loads(json.dumps({"name": name, "seed": seed, **CONFIG}))
    for key, value in (config or {}).items():
        *groups, last = key.split(".")
        part = whole
        for group in groups:
            part = part[group]
        part[last] = value
    content = {
        "name": name,
        "seed": seed,
        "data": "cifar10",
        "val/acc": val,
        "val/loss": 1.0,
        "test/acc": test_acc,
        "test/loss": 1.1,
        "best_epoch": 3,
        "epochs": 4,
        "params": 1_578_506,
        "train_seconds": 30.0 + seed,
        "images_per_second": 5000.0,
        "device": "CPU, 2 threads",
        "precision": "32-true",
        "versions": {"torch": "2.15.0"},
        "config": whole,
        **metrics,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def shown(rows: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(rows, width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_seeds_of_one_config_are_one_row(tmp_path: Path) -> None:
    accuracies = [0.9, 0.93, 0.915]
    for seed, acc in enumerate(accuracies):
        write_run(tmp_path / "mlp" / f"2026_seed{seed}", seed, acc, test_acc=acc - 0.01)
    write_run(tmp_path / "sweeps" / "2026" / "0_conv_seed7", 7, 0.95, name="conv")
    best, row = compare([tmp_path])
    assert (best.rank, best.name, best.seeds, best.val_acc_sd, best.test_acc_sd) == (1, "conv", (7,), None, None)
    assert (row.rank, row.name, row.seeds, row.test_runs) == (2, "mlp", (0, 1, 2), 3)
    assert row.val_acc == pytest.approx(statistics.fmean(accuracies))
    assert row.val_acc_sd == pytest.approx(0.015)
    assert row.test_acc == pytest.approx(statistics.fmean(accuracies) - 0.01)
    assert row.train_seconds == 31
    assert row.best_run == tmp_path / "mlp" / "2026_seed1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resume", "outputs/mlp/x"),
        ("test", False),
        ("tta", "mirror"),
        ("logger", {"_target_": "TensorBoardLogger"}),
        ("data.root", "/elsewhere"),
        ("data.mirrors", []),
        ("data.verify", False),
    ],
)
def test_keys_without_effect_do_not_split_a_row(tmp_path: Path, key: str, value: object) -> None:
    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1, config={key: value})
    assert [row.seeds for row in compare([tmp_path])] == [(0, 1)]


def test_a_number_is_the_same_with_and_without_a_point(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, config={"optim.weight_decay": 0})
    write_run(tmp_path / "b", 1, config={"optim.weight_decay": 0.0})
    assert [(row.seeds, row.differs) for row in compare([tmp_path])] == [((0, 1), ())]


def test_a_run_that_is_older_than_a_key_has_its_default(tmp_path: Path) -> None:
    config = plain(train_config("model=conv_pool"))
    for seed, left_out in enumerate(([], ["lookahead", "compile"], ["model.stem_stride", "trainer.num_nodes"])):
        older = json.loads(json.dumps(config))
        for key in left_out:
            group, _, name = key.rpartition(".")
            del (older[group] if group else older)[name]
        write_run(tmp_path / str(seed), seed, name="conv", config=older)
    assert [row.seeds for row in compare([tmp_path])] == [(0, 1, 2)]


def test_the_precision_that_auto_chose_splits_a_row(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, config={"trainer": {"precision": "auto"}})
    write_run(tmp_path / "b", 1, config={"trainer": {"precision": "auto"}}, precision="bf16-mixed")
    write_run(tmp_path / "c", 2, config={"trainer": {"precision": "32-true"}})
    assert {(row.seeds, row.differs) for row in compare([tmp_path])} == {
        ((0, 2), ("trainer.precision=32-true",)),
        ((1,), ("trainer.precision=bf16-mixed",)),
    }


def test_rows_of_one_name_show_the_keys_in_which_they_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a", val=0.9)
    write_run(tmp_path / "b", val=0.8, config={"optim.lr": 0.003, "model.hidden": [8], "data.root": "/elsewhere"})
    write_run(tmp_path / "c", val=0.7, config={"optim": {"_target_": "torch.optim.SGD", "lr": 0.001, "momentum": 0.9}})
    write_run(tmp_path / "d", val=0.6, name="conv", config={"data.batch_size": 512})
    assert [" ".join(row.differs) for row in compare([tmp_path])] == [
        "model.hidden=[512,256] optim._target_=Adam optim.lr=0.001",
        "model.hidden=[8] optim._target_=Adam optim.lr=0.003",
        "model.hidden=[512,256] optim._target_=SGD optim.lr=0.001 optim.momentum=0.9",
        "",
    ]


def test_a_value_with_blanks_stays_whole(tmp_path: Path) -> None:
    for place, classes in (("a", ["my cat", "dog"]), ("b", ["cat", "dog"])):
        write_run(tmp_path / place, val=0.9 if place == "a" else 0.8, config={"data.classes": classes})
    rows = rank(find_runs([tmp_path])[0])
    shown = 'data.classes=["my cat","dog"]'
    assert rows[0].differs == (shown,)
    assert names_of(rows)[0] == '1 classes=["my cat","dog"]'
    console = Console(file=io.StringIO(), width=160)
    console.print(table(rows, 160))
    assert shown in console.file.getvalue()  # type: ignore[attr-defined]


def test_how_many_classes_were_chosen_is_told_beside_the_data(tmp_path: Path) -> None:
    write_run(tmp_path / "a", val=0.9, name="few", config={"data.classes": ["cat", "dog"]})
    write_run(tmp_path / "b", val=0.8, name="all")
    assert [row.data for row in compare([tmp_path])] == ["cifar10, 2 classes", "cifar10"]


def test_what_is_drawn_and_trusted_splits_no_row(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1, config={"figures": False, "trust": ["my_net"]})
    (row,) = compare([tmp_path])
    assert (row.seeds, row.differs) == ((0, 1), ())


def test_a_group_that_is_off_differs_from_one_that_is_on(tmp_path: Path) -> None:
    write_run(tmp_path / "a", val=0.9, config={"logger": None, "scheduler": {"_target_": "a.StepLR", "monitor": None}})
    write_run(tmp_path / "b", val=0.8, config={"scheduler": None})
    assert [row.differs for row in compare([tmp_path])] == [("scheduler._target_=StepLR",), ("scheduler=null",)]


def test_the_data_really_used_split_a_row(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, 0.9)
    write_run(tmp_path / "b", 1, 0.8, data="shapes")
    first, second = compare([tmp_path])
    assert (first.data, first.seeds, first.differs) == ("cifar10", (0,), ())
    assert (second.data, second.seeds, second.differs) == ("shapes", (1,), ())
    write_run(tmp_path / "c", 2, 0.7, fingerprint="0123456789")
    assert compare([tmp_path])[2].differs == ("fingerprint=01234567",)


def test_a_repeated_seed_counts_once_and_the_last_run_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for age, val in [(2, 0.7), (0, 0.8), (1, 0.9)]:
        metrics_path = write_run(tmp_path / f"{val}", 0, val) / "metrics.json"
        os.utime(metrics_path, (1e9 - age, 1e9 - age))
    (row,) = compare([tmp_path])
    assert (row.seeds, row.val_acc) == ((0,), 0.8)
    assert "2 runs are left out: a later one repeats config and seed" in capsys.readouterr().out


def test_test_accuracy_is_taken_over_the_runs_that_have_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, test_acc=0.6)
    write_run(tmp_path / "b", 1, test_acc=None)
    write_run(tmp_path / "c", 2, test_acc=0.8)
    write_run(tmp_path / "d", 0, 0.4, name="untested", test_acc=None)
    first, untested = compare([tmp_path])
    assert (first.test_acc, first.test_runs) == (pytest.approx(0.7), 2)
    assert (untested.test_acc, untested.test_acc_sd, untested.test_runs) == (None, None, 0)
    assert any("70.00 ± 14.14 (n=2)" in line for line in shown([first, untested], 160))


def test_runs_without_a_val_acc_come_last(tmp_path: Path) -> None:
    for name, val in [("nan", math.nan), ("low", 0.0), ("none", None), ("high", 0.2)]:
        write_run(tmp_path / name, val=val, name=name)
    write_run(tmp_path / "nan1", seed=1, val=0.99, name="nan")
    write_run(tmp_path / "none1", seed=1, val=0.99, name="none")
    rows = compare([tmp_path])
    assert [row.name for row in rows[:2]] == ["high", "low"]
    assert {row.name: row.val_acc for row in rows[2:]} == {"nan": None, "none": None}
    assert next(row for row in rows if row.name == "nan").best_run == tmp_path / "nan1"


def test_csv_holds_the_rows_unrounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0, 1 / 3)
    write_run(tmp_path / "b", 1, 2 / 3)
    write_run(tmp_path / "c", 5, None, name='a, "quoted" one')
    first, last = rows = compare([tmp_path])
    assert f"written to {tmp_path / 'leaderboard.csv'}" in capsys.readouterr().out
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) == 2
    assert float(written[0]["val_acc"]) == first.val_acc == 0.5
    assert float(written[0]["val_acc_sd"]) == first.val_acc_sd
    assert (written[0]["seeds"], written[0]["best_run"]) == ("0 1", str(tmp_path / "b"))
    assert (written[1]["name"], written[1]["val_acc"]) == (last.name, "")

    compare([tmp_path], tmp_path / "new" / "board.csv")
    assert (tmp_path / "new" / "board.csv").read_text() == (tmp_path / "leaderboard.csv").read_text()
    with pytest.raises(MachineError, match=r"^'.*' cannot be written \(File exists\) - [^\n]+$"):
        compare([tmp_path], tmp_path / "a" / "metrics.json" / "board.csv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "eof while parsing"),
        (b'{"name": "cut off', "eof while parsing"),
        (b"\xff\xfe", "json"),
        (b"[1, 2]", "object"),
        (b'{"name": "mlp"}', "seed: field required"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    write_run(tmp_path / "good")
    (write_run(tmp_path / "bad") / "metrics.json").write_bytes(content)
    assert [row.best_run for row in compare([tmp_path])] == [tmp_path / "good"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line.startswith(f"{tmp_path / 'bad' / 'metrics.json'} is left out: ")
    assert reason in line.lower()


def test_unfinished_runs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_run(tmp_path / "finished") / ".hydra").mkdir()
    (tmp_path / "crashed" / ".hydra").mkdir(parents=True)
    (tmp_path / "learning-rate test" / ".hydra").mkdir(parents=True)
    (tmp_path / "learning-rate test" / "figures").mkdir()
    (tmp_path / "learning-rate test" / "figures" / "learning_rate_finder.png").touch()
    assert "1 run is not listed: unfinished" in find_runs([tmp_path])[1][0]
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "last.ckpt").touch()
    compare([tmp_path])
    assert "2 runs are not listed: unfinished" in capsys.readouterr().out


def test_folders_that_overlap_count_a_run_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "here" / "a", 0)
    write_run(tmp_path / "there" / "deep" / "b", 1)
    (row,) = compare([folder, tmp_path / "here", tmp_path / "there", tmp_path])
    assert row.seeds == (0, 1)
    assert len(find_runs([folder, tmp_path / "here" / "..", tmp_path])[0]) == 2


def test_nothing_to_compare_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=f"^no finished run below '{tmp_path}' - train one with litcifar-train "):
        compare([tmp_path])
    assert not (tmp_path / "leaderboard.csv").exists()
    with pytest.raises(CheckpointError, match=r"^'.*missing' is not a folder - [^\n]+$"):
        compare([tmp_path / "missing"])
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(CheckpointError, match="no finished run"):
        compare([tmp_path])
    assert "metrics.json is left out" in capsys.readouterr().out


def test_table_shows_percent_and_what_a_name_says_literally(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, 0.9, name="[bold]x[/] :smile:", train_seconds=5400)
    write_run(tmp_path / "b", 1, 0.92, name="[bold]x[/] :smile:", train_seconds=5400)
    text = "\n".join(shown(rank(find_runs([tmp_path])[0]), 160))
    for part in ["[bold]x[/] :smile:", "91.00 ± 1.41", "45.00 ± 0.00", "1,578,506", "90.0 min", "CPU, 2 threads"]:
        assert part in text
    assert "differs in" not in text


def test_accuracy_with_test_time_augmentation_has_its_own_columns_where_there_is_any(tmp_path: Path) -> None:
    for seed in range(2):
        tta: dict[str, Any] = {"tta": "mirror", "val/tta_acc": 0.6 + seed / 50, "test/tta_acc": 0.5 + seed / 50}
        write_run(tmp_path / f"old{seed}", seed, 0.4, name="old")
        write_run(tmp_path / f"both{seed}", seed, 0.3, name="both", **tta)
        write_run(tmp_path / f"mixed{seed}", seed, 0.2, name="mixed", **(tta if seed else {}))
        write_run(
            tmp_path / f"kinds{seed}", seed, 0.1, name="kinds", **tta | {"tta": ("mirror", "mirror_translate")[seed]}
        )
    old, both, mixed, kinds = rank(find_runs([tmp_path])[0])
    assert (old.tta, old.val_tta_acc, old.test_tta_acc) == ("none", None, None)
    assert (both.tta, both.val_acc, both.test_acc) == ("mirror", 0.3, 0.45)
    assert (both.val_tta_acc, both.test_tta_acc) == pytest.approx((0.61, 0.51))
    assert (both.val_tta_acc_sd, both.test_tta_acc_sd) == pytest.approx((0.0141421, 0.0141421), rel=1e-5)
    for row in (mixed, kinds):
        assert (row.tta, row.val_tta_acc, row.test_tta_acc) == (None, None, None)
        assert len(row.seeds) == 2
    rows = [old, both, mixed, kinds]
    text = "\n".join(shown(rows, 120))
    for part in ("val tta %", "test tta %", "61.00 ± 1.41", "51.00 ± 1.41"):
        assert part in text
    assert "tta" not in "\n".join(shown(rows, 119))
    assert "tta" not in "\n".join(shown([old], 160))
    assert "test tta %" not in "\n".join(shown([dataclasses.replace(both, test_tta_acc=None)], 160))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_numbers_stay_whole_in_a_terminal(tmp_path: Path, width: int) -> None:
    name, device = "conv_pool_very_wide_94", "NVIDIA A100-SXM4-40GB"
    for seed in range(2):
        for lr, val in [(0.0012345, 0.901), (0.0034567, 0.903)]:
            write_run(tmp_path / f"{seed}{lr}", seed, val + seed / 100, {"optim.lr": lr}, name, device=device)
    rows = rank(find_runs([tmp_path])[0])
    lines = shown(rows, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ["90.80 ± 0.71", "90.60 ± 0.71", "45.00 ± 0.00", "30.5 s", *(["1,578,506"] if width > 80 else [])]:
        assert part in text
    if width == 160:
        assert all(part in text for part in (name, "optim.lr=0.0034567", device))
    elif width == 100:  # folded, but whole
        assert [line[-10:].strip() for line in lines[2:5]] == ["NVIDIA", "A100-SXM4-", "40GB"]


def test_a_pipe_gets_whole_lines_and_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "a", name="n" * 120)
    write_run(tmp_path / "b", name="n" * 120, config={"model._target_": "m" * 120})
    program = (
        "import sys; from pathlib import Path; from litcifar.comparison import compare;"
        "compare([Path(sys.argv[1])]); assert 'torch' not in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    assert any(
        "n" * 120 in line and "m" * 120 in line and "CPU, 2 threads" in line for line in done.stdout.splitlines()
    )
