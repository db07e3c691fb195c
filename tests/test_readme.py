"""The README's code and commands do what it says: they are taken from there and run."""

import ast
import pickle
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litcifar import checkpoints, training
from litcifar.config import DemoConfig, train_config
from litcifar.data.cifar10_files import CLASSES
from litcifar.models import Wrapped
from litcifar.prediction import rows_of
from tests.conftest import Outcome, Run

README = Path(__file__).parents[1] / "README.md"


def section(title: str) -> tuple[dict[str, str], list[list[str]]]:
    """The files and the commands that stand indented in a section; a file's first line is its name."""
    text = README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    files, commands = {}, []
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE):
        lines = [line[4:] for line in block.strip("\n").splitlines()]
        if lines and (named := re.fullmatch(r"# (\w+\.py)", lines[0])):
            files[named[1]] = "\n".join(lines) + "\n"
        else:
            commands += [shlex.split(line, comments=True) for line in lines if line]
    return files, commands


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the README's commands find: some images, and no module of an earlier test."""
    rng = np.random.default_rng(0)
    for name in ("photo.jpg", "photos/a.png", "photos/b.jpg", "more/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "DIR" / "cifar-100-python").mkdir(parents=True)
    for name, count in (("train", 200), ("test", 100)):
        images, labels = rng.integers(0, 256, (count, 3072), np.uint8), (np.arange(count) % 20).tolist()
        content = pickle.dumps({"data": images, "fine_labels": labels, "coarse_labels": labels}, protocol=2)
        (tmp_path / "DIR" / "cifar-100-python" / name).write_bytes(content)
    names = {"fine_label_names": [f"class {number}" for number in range(20)]}  # of its 100
    (tmp_path / "DIR" / "cifar-100-python" / "meta").write_bytes(pickle.dumps(names, protocol=2))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def done(run: Run, command: list[str], *further: str) -> Outcome:
    """A command of the README, with the time of the one run that there is."""
    folders = {str(path.relative_to(Path.cwd())) for path in Path.cwd().glob("outputs/*/*_seed0")}
    arguments = []
    for argument in command[1:]:
        if found := re.search(r"outputs/\w+/<time>_seed0", argument):
            (folder,) = (folder for folder in folders if folder.startswith(found[0].split("<")[0]))
            argument = argument.replace(found[0], folder)
        arguments.append(argument)
    outcome = run(command[0].removeprefix("litcifar-"), *arguments, *further)
    assert isinstance(outcome, Outcome)
    return outcome


def test_use() -> None:
    text = README.read_text().split("\n## Use\n")[1].split("\n## ")[0]
    lines = [
        line.strip() for line in text.splitlines() if line.startswith("    litcifar-train ") and "<time>" not in line
    ]
    assert len(lines) == 13
    for line in lines:
        command = shlex.split(line, comments=True)
        seen = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
        ).stdout
        assert seen.split("\0")[:-1] == command, "as bash reads it"
        if "-m" not in command:
            config = train_config(*command[1:])
            if config.data.target != "litcifar.data.ImageFolderDataModule":  # its classes are its folders
                training.check_trainable(training.new_model(config, checkpoints.data_of(config)), config)


def test_make_it_yours(run: Run, tiny: list[str], workplace: Path) -> None:
    files, commands = section("Make it yours")
    for name, text in files.items():
        (workplace / name).write_text(text)
    assert files.keys() == {"my_net.py", "my_data.py"}
    assert [command[0] for command in commands].count("litcifar-train") == 3
    for command in commands:
        resumed = any(argument.startswith("resume=") for argument in command)
        quick = ["trainer.max_epochs=1", "logger=none", "figures=false", "data.val_size=50"]
        further = quick if "data=own" in command else tiny if "model=own" in command else []
        further = ["trainer.max_epochs=2"] if resumed else further  # not 20 as it says, which takes longer
        outcome = done(run, command, *further)
        assert outcome.code == 0, (command, outcome.err)
        if resumed:
            assert "epoch 2/2" in outcome.out
        if command[0] == "litcifar-train":
            continue
        # The same command of somebody who did not name the package runs none of its code.
        package = next(argument for argument in command if argument.startswith("trust="))
        for module in ("my_net", "my_data"):
            sys.modules.pop(module, None)
        refused = done(
            run,
            [argument for argument in command if argument != package],
            *(["overwrite=true"] if "export" in command[0] else []),
        )
        assert refused.code == 4
        assert refused.err.startswith("error: the checkpoint's configuration: ")
        assert f"{package} if you know what is in it" in refused.err
        assert refused.err.count("\n") == 1
        assert not sys.modules.keys() & {"my_net", "my_data"}
    (folder,) = (workplace / "outputs" / "tiny").iterdir()
    model = checkpoints.load(folder, ["my_net"]).model
    assert isinstance(model, Wrapped)
    assert model.net[1].features[0].out_channels == 64  # type: ignore[index]
    (folder,) = (workplace / "outputs" / "cifar100").iterdir()
    assert checkpoints.load(folder, ["my_data"]).model.classes[19] == "class 19"
    for module in ("my_net", "my_data"):
        sys.modules.pop(module, None)


def test_use_the_model(
    run: Run, tiny: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "name=quickstart", "model.widths=[4,8]", *tiny).code == 0
    files, commands = section("Use the model")
    assert len(commands) == 5
    served: list[DemoConfig] = []
    monkeypatch.setattr("litcifar.demo.demo", served.append)
    outcomes = [done(run, command) for command in commands]
    assert [config.port for config in served] == [7860]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0, 0, 0], [outcome.err for outcome in outcomes]
    assert outcomes[0].out.count("photo") == 3  # and one in more
    assert "4 images in " in outcomes[0].out
    assert len((workplace / "photos.csv").read_text().splitlines()) == 3

    (name, text) = files.popitem()
    assert len(text.splitlines()) <= 15
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    (workplace / name).write_text(text)
    monkeypatch.setattr(sys, "argv", [name, "photo.jpg", "photos/a.png"])
    runpy.run_path(name, run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    (folder,) = (workplace / "outputs" / "quickstart").iterdir()
    model = checkpoints.load(folder).model
    rows = rows_of(model, [Path("photo.jpg"), Path("photos/a.png")], 1)
    for line, row in zip(printed, rows, strict=True):
        ((best, share),) = row.answers
        assert best in CLASSES
        assert line == f"{row.image}: {best} {share:.1%}"
