"""The wheel holds the package with its configuration and nothing else, and works where nothing else of it is."""

import os
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


def test_a_wheel_holds_the_modules_and_the_configuration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        scripts = archive.read(entry_points).decode()
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    settings = {f"litcifar/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    files = [path for path in (ROOT / "src").rglob("templates/*") if path.is_file()]  # no __pycache__
    pages = {path.relative_to(ROOT / "src").as_posix() for path in files}
    assert names == modules | settings | pages
    for command in ("train", "evaluate", "look", "compare", "predict", "export", "demo"):
        assert f"litcifar-{command} = litcifar.cli:{command}\n" in f"{scripts}\n"


@pytest.mark.slow
def test_a_wheel_works_in_another_environment_and_folder(wheel: Path, tiny_cifar10: Path, tmp_path: Path) -> None:
    """Its dependencies, which take gigabytes, are those of this environment; litcifar is not."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def call(*command: str) -> str:
        done = subprocess.run(
            [home / "bin" / command[0], *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("python", "-m", "pip", "install", "--no-deps", "--no-index", str(wheel))
    own = Path(call("python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    # A folder that a .pth file names can be imported from; its own .pth files, such as litcifar's, are not read.
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    assert call("python", "-c", "import litcifar; print(litcifar.__file__)").startswith(str(own))
    assert "seed: 0" in call("litcifar-train", "--cfg", "job")
    quick = [f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50", "trainer.max_epochs=1"]
    assert "best epoch 1 of 1" in call("litcifar-train", "model=mlp", "hydra.run.dir=run", *quick)
    assert "test/acc" in call("litcifar-evaluate", "ckpt=run")
    assert "largest difference from PyTorch on 40 test images" in call("litcifar-export", "ckpt=run")
