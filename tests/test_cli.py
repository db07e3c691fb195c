"""The command line: every mistake is one line and its exit code, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from litcifar import cli

TRAIN, EVALUATE, COMPARE = "train", "evaluate", "compare"


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs a console script in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(command: str, *arguments: str) -> Outcome:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"litcifar-{command}", *arguments])
        monkeypatch.setattr(cli, "FAILURES", [])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        with pytest.raises(SystemExit) as end:
            getattr(cli, command)()
        captured = capsys.readouterr()
        return Outcome(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def tiny(tiny_cifar10: Path) -> list[str]:
    return [f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50", "trainer.max_epochs=1", "logger=none"]


MISTAKES = {
    "seedd=1": "unknown key 'seedd' - did you mean 'seed'?",
    "model.widht=64": "did you mean 'model.widths'?",
    "+model.widht=64": "unknown key 'model.widht' - did you mean 'model.widths'?",
    "+nonsense=1": "unknown key 'nonsense'",
    "max_epochs=3": "did you mean 'trainer.max_epochs'?",
    "model=resnet": "unknown model=resnet - choose from conv_pool, mlp",
    "experiment=nope": "keras_cnn",
    "seed=1,2": "--multirun",
    "model.widths=[1,2": "[1,2",
    "seed": "'seed' cannot be read - write key=value",
    "~seed": "seed",
    "trainer.max_epochs=ten": "trainer.max_epochs=ten - input should be a valid integer",
    "trainer.max_epochs=1.5": "trainer.max_epochs=1.5",
    "trainer.max_epochs=true": "trainer.max_epochs=True",
    "trainer.max_epochs=0": "trainer.max_epochs=0 - input should be greater than or equal to 1",
    "trainer.accelerator=gpux": "trainer.accelerator=gpux",
    "trainer.precision=12": "trainer.precision=12",
    "trainer.devices=5": "trainer.devices=5",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val=-1",
    "data.batch_size=0": "data.batch_size=0",
    "data.batch_size=8.5": "data.batch_size=8.5",
    "data.batch_size='8'": "data.batch_size=8",
    "data.classes=[cat]": "data.classes=['cat']",
    "optim.lr=nan": "optim.lr=nan - input should be a finite number",
    "optim.lr=inf": "optim.lr=inf",
    "optim.lr=-1": "optim.lr=-1 - input should be greater than 0",
    "optim.lr=0.1x": "optim.lr=0.1x",
    "optim._target_=os.system": "optim._target_=os.system",
    "seed=-1": "seed=-1",
    "seed=1.5": "seed=1.5",
    "seed=abc": "seed=abc",
    "model.dropout=1.5": "model.dropout=1.5",
    "model.activation=swish": "model.activation=swish",
    "model._target_=os.system": "model._target_=os.system",
    "augment.flip=maybe": "augment.flip=maybe",
    "data=image_folder": "'data.root' is missing",
    "name=a/b": "name=a/b",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(run, tmp_path: Path, mistake: str) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, mistake)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert MISTAKES[mistake] in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert not list(tmp_path.rglob("*")) or [p.name for p in tmp_path.iterdir()] == ["outputs"]
    assert not list(tmp_path.rglob("*seed*"))


def test_a_mistake_inside_an_experiment_file_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nsede: 1\nmodel: {widht: 3}\n")
    outcome = run(TRAIN, "--config-dir", str(tmp_path), "experiment=typo")
    assert outcome.code == 2
    assert "unknown key 'sede' - did you mean 'seed'?" in outcome.err
    assert "unknown key 'model.widht' - did you mean 'model.widths'?" in outcome.err


def test_a_key_of_another_family_is_explained_by_the_chosen_one(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, "model=mlp", "model.hiden=[3]")
    assert "did you mean 'model.hidden'?" in outcome.err


def test_missing_data_is_exit_code_3_and_says_what_to_do(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, "data.root=nowhere", "data.mirrors=[]")
    assert outcome.code == 3
    assert "data=shapes" in outcome.err.splitlines()[-1]
    assert not list(tmp_path.glob("outputs/*"))


def test_missing_and_foreign_checkpoints_are_exit_code_4(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    assert run(EVALUATE, "ckpt=nowhere.ckpt").code == 4
    outcome = run(EVALUATE, "ckpt=text.ckpt")
    assert outcome.code == 4
    assert outcome.err.count("\n") == 1
    assert run(TRAIN, "resume=nowhere").code == 4
    assert run(COMPARE, "nowhere").code == 4


def test_train_evaluate_compare(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    trained = run(TRAIN, "model=mlp", "seed=7", *tiny)
    assert trained.code == 0, trained.err
    (folder,) = (tmp_path / "outputs" / "mlp").iterdir()
    assert folder.name.endswith("_seed7")
    assert (folder / ".hydra" / "overrides.yaml").exists()
    evaluated = run(EVALUATE, f"ckpt={folder}/best.ckpt")
    assert evaluated.code == 0, evaluated.err
    assert "test/acc" in evaluated.out
    assert "macro average" in evaluated.out
    compared = run(COMPARE, "outputs")
    assert compared.code == 0
    assert "mlp" in compared.out
    assert (tmp_path / "outputs" / "leaderboard.csv").exists()


def test_resume_goes_on_in_the_same_folder(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run(TRAIN, "model=mlp", *tiny)
    (folder,) = (tmp_path / "outputs" / "mlp").iterdir()
    overrides = (folder / ".hydra" / "overrides.yaml").read_text()
    assert run(TRAIN, f"resume={folder}", "trainer.max_epochs=2").code == 0
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert (folder / ".hydra" / "overrides.yaml").read_text() == overrides
    assert [folder] == list((tmp_path / "outputs" / "mlp").iterdir())
    outcome = run(TRAIN, f"resume={folder}", "optim.lr=0.5")
    assert outcome.code == 2
    assert "optim.lr=0.5 (was 0.001)" in outcome.err


def test_a_sweep_goes_on_after_a_failure_and_lists_it(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sweep = ["-m", "model=mlp", "model.hidden=[8]", "optim.lr=1e-3,1e36,1e-2", "hydra.sweep.dir=sweep", *tiny]
    outcome = run(TRAIN, *sweep)
    assert outcome.code == 1
    assert "sweep/1_mlp_seed0" in outcome.err
    assert outcome.err.count("error: ") == 1
    assert outcome.out.index("failed    ") < outcome.out.index("mlp seed 0", outcome.out.index("failed    "))
    finished = sorted(p.parent.name for p in tmp_path.glob("sweep/*/metrics.json"))
    assert finished == ["0_mlp_seed0", "2_mlp_seed0"]
    assert '"test/acc": null' in (tmp_path / "sweep" / "0_mlp_seed0" / "metrics.json").read_text()
    assert "hydra.sweep.dir=sweep" in outcome.out
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("sweep/*/best.ckpt")}
    again = run(TRAIN, *sweep)
    assert again.out.count("already finished") == 2
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("sweep/*/best.ckpt")}


def test_ctrl_c_in_an_evaluation_is_exit_code_130(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(TRAIN, "model=mlp", *tiny)
    (folder,) = (tmp_path / "outputs" / "mlp").iterdir()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("litcifar.models.classifier.ImageClassifier._evaluate", interrupted)
    outcome = run(EVALUATE, f"ckpt={folder}")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1].startswith("error: stopped by SIGINT")


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).parent / arguments[0]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    return subprocess.run([path, *arguments[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_installed_script_answers_without_importing_torch(tmp_path: Path) -> None:
    """Importing torch takes seconds; so do lightning and torchvision."""
    code = "import sys; from litcifar import cli; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    helped = script("litcifar-train", "--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert "experiment" in helped.stdout
    mistaken = script("litcifar-train", "seedd=1", cwd=tmp_path)
    assert mistaken.returncode == 2
    assert mistaken.stderr == "error: unknown key 'seedd' - did you mean 'seed'?\n"


def test_a_full_run_from_another_folder(tiny: list[str], tmp_path: Path) -> None:
    result = script("litcifar-train", "model=mlp", *tiny, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "best epoch 1 of 1" in result.stdout
