"""The command line: every mistake is one line and its exit code, and leaves nothing behind."""

import contextlib
import errno
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from PIL import Image

from litcifar import cli, run_folder
from litcifar.config import TrainConfig
from litcifar.errors import Interrupted
from litcifar.keys import compose, conf_dir, flat
from litcifar.models import ImageClassifier
from tests.test_training import result, same

TRAIN, EVALUATE, COMPARE, LOOK = "train", "evaluate", "compare", "look"
PREDICT, EXPORT, DEMO = "predict", "export", "demo"


QUICK = ["logger=none", "figures=false"]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs a console script in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(command: str, *arguments: str, full_error: bool = False) -> Outcome:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"litcifar-{command}", *arguments])
        monkeypatch.setattr(cli, "FAILURES", [])
        monkeypatch.setenv("HYDRA_FULL_ERROR", str(int(full_error)))
        with pytest.raises(SystemExit) as end:
            getattr(cli, command)()
        captured = capsys.readouterr()
        return Outcome(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def tiny(tiny_cifar10: Path) -> list[str]:
    return [f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50", "trainer.max_epochs=1", *QUICK]


MISTAKES = {
    "seedd=1": "unknown key 'seedd' - did you mean 'seed'?",
    "model.widht=64": "did you mean 'model.widths'?",
    "+model.widht=64": "unknown key 'model.widht' - did you mean 'model.widths'?",
    "+nonsense=1": "unknown key 'nonsense'",
    "max_epochs=3": "did you mean 'trainer.max_epochs'?",
    "model=resnet": "unknown model=resnet - choose from conv_pool, mlp, own",
    "experiment=nope": "keras_cnn",
    "seed=1,2": "--multirun",
    "model.widths=[1,2": "[1,2",
    "seed": "'seed' cannot be read - write key=value",
    "~seed": "seed",
    "~figures": "figures",
    "trainer.max_epochs=ten": "trainer.max_epochs=ten - input should be a valid integer",
    "trainer.max_epochs=1.5": "trainer.max_epochs=1.5",
    "trainer.max_epochs=true": "trainer.max_epochs=True",
    "trainer.max_epochs=0": "trainer.max_epochs=0 - input should be greater than or equal to 1",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches=0",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0",
    "trainer.val_check_interval=0": "unknown key 'trainer.val_check_interval'",
    "trainer.log_every_n_steps=-1": "unknown key 'trainer.log_every_n_steps'",
    "trainer.strategy=dpp": "'auto' or 'ddp'",
    "trainer.deterministic=yes": "trainer.deterministic=yes",
    "trainer.accelerator=gpux": "trainer.accelerator=gpux",
    "trainer.precision=12": "trainer.precision=12",
    "trainer.devices=5": "trainer.devices=5 is several processes - set trainer=ddp",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val=-1",
    "data.batch_size=0": "data.batch_size=0",
    "data.batch_size=-1": "data.batch_size=-1",
    "data.batch_size=8.5": "data.batch_size=8.5",
    "data.batch_size='8'": "data.batch_size=8",
    "data.classes=[cat]": "data.classes=['cat']",
    "optim.lr=nan": "optim.lr=nan - input should be a finite number",
    "optim.lr=inf": "optim.lr=inf",
    "optim.lr=-1": "optim.lr=-1 - input should be greater than 0",
    "optim.lr=0.1x": "optim.lr=0.1x",
    "optim._target_=os.system": "optim._target_=os.system - choose a class of torch.optim or litcifar.optim",
    "seed=-1": "seed=-1",
    "seed=1.5": "seed=1.5",
    "seed=1099511627776": "seed=1099511627776 - input should be less than 4294967296",
    "seed=null": "seed=None",
    "seed=abc": "seed=abc",
    "model.dropout=1.5": "model.dropout=1.5",
    "model.activation=swish": "model.activation=swish",
    "model._target_=os.system": "model._target_=os.system is code from outside litcifar",
    "data._target_=my.Data": "package - trust=[my] if you know what is in it",
    "model._target_=litcifar.models.Nope": "model._target_=litcifar.models.Nope is not one of",
    "model=own": "'model._target_' is missing - give it",
    "trust=[a-b]": "trust.0=a-b - give the name of a package, such as my_net",
    "augment.flip=maybe": "augment.flip=maybe",
    "data=image_folder": "'data.root' is missing - give it: data.root=...",
    "name=a/b": "name=a/b - use letters, digits, _",
    "tta=flip": "tta=flip - input should be 'none', 'mirror' or 'mirror_translate'",
    "tta=null": "tta=None - input should be",
    "name=..": "name=..",
    "name=???": "name",
    "resume=": "resume= - string should have at least 1 character",
    "data.root=": "data.root= - string should have at least 1 character",
    "data.root=~/images": "cannot be read - quote the value: \"data.root='~/images'\"",
    "optim.lr=${optim.rate}": "Interpolation key 'optim.rate' not found - correct the reference",
    "optim.lr=${optim.lr}": "Recursive interpolation detected",
    "model.convs=[1,2,": "'model.convs=[1,2,' cannot be read - close the bracket",
    "model=1": "Config group override must be a string",
    "=3": "'=3' has no key - write key=value",
    "trainer.max_time=abc": "trainer.max_time=abc",
    "trainer.max_time={hous:1}": "trainer.max_time.hous=1 - input should be 'weeks', 'days', 'hours'",
    "trainer.check_val_every_n_epoch=99": "larger than trainer.max_epochs - make it smaller",
    "--max_epochs=3": "unknown option '--max_epochs=3' - write trainer.max_epochs=3",
    "--batch-size=32": "write data.batch_size=32",
    "tune=rl": "tune=rl - input should be 'lr'",
    "--nonsense": "unknown option '--nonsense' - keys are written without dashes: key=value",
    "--cfg=nonsense": "argument --cfg/-c: invalid choice: 'nonsense'",
    "--config-name=nonsense": "Cannot find primary config 'nonsense'",
    "hydra.run.dirr=x": "unknown key 'hydra.run.dirr' - choose from augment, compile, data,",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(run, tmp_path: Path, mistake: str) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, mistake)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert MISTAKES[mistake] in outcome.err
    assert " - " in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert not list(tmp_path.rglob("*")) or [p.name for p in tmp_path.iterdir()] == ["outputs"]
    assert not list(tmp_path.rglob("*seed*"))


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--max_epochs", "3"], "error: unknown option '--max_epochs' - write trainer.max_epochs=3\n"),
        (["model=mlp", "--lr", "0.1"], "error: unknown option '--lr' - write optim.lr=0.1\n"),
        (["--model", "mlp"], "error: unknown option '--model' - write model=mlp\n"),
        (["--epochs", "seed=3"], "error: unknown option '--epochs' - write trainer.max_epochs=...\n"),
        (
            ["model=mlp", "model.widths=[3]"],
            "error: unknown key 'model.widths' - choose from model._target_, model.act",
        ),
    ],
)
def test_a_mistake_is_answered_with_what_to_write(run, arguments: list[str], answer: str) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(answer)


@pytest.mark.parametrize(
    "argument", [f"data.classes=[{','.join(f'class{n}' for n in range(99))}]", "resume=~nobody/run"]
)
def test_what_no_file_can_be_called_is_a_line_too(run, argument: str) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, "model=mlp", "data=shapes", argument)
    assert outcome.code in (2, 4)
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_a_choice_that_sets_many_keys_is_a_change_of_a_resumed_run(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = ["model=mlp", "trainer.max_epochs=1", "hydra.run.dir=a"]
    assert run(TRAIN, *tiny, *first).code == 0
    for choice, message in (("regularisation=l2", "optim.weight_decay="), ("experiment=numpy_mlp", "name=numpy_mlp")):
        outcome = run(TRAIN, "resume=a", choice)
        assert outcome.code == 2
        assert message in outcome.err
        assert "a resumed run keeps its configuration" in outcome.err
    outcome = run(TRAIN, "resume=a", "hydra.run.dir=b")
    assert outcome.err == "error: hydra.run.dir: a resumed run goes on in its own folder - leave it out\n"
    assert not (tmp_path / "b").exists()
    assert "epoch 2/2" in run(TRAIN, "resume=a", "trainer=default", "trainer.max_epochs=2").out


def test_hydras_options_may_stand_anywhere(run, tiny: list[str]) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, "model=mlp", "--cfg", "job", "seed=3")
    assert outcome.code == 0
    assert "seed: 3" in outcome.out


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("trainer.max_steps=9", "ends the run before its first validation, after 10 steps - give it 10 or more"),
        ("trainer.limit_test_batches=1e-4", "trainer.limit_test_batches=0.0001 leaves no batch - make it larger"),
        (
            "trainer.limit_train_batches=0.3 trainer.accumulate_grad_batches=4",  # of 3 steps
            "trainer.limit_train_batches=0.3 leaves no batch - make it larger",
        ),
        ("data.val_size=200", "data.val_size=200 leaves nothing of 200 images - choose a smaller one"),
        ("augment.translate=32", "augment.translate=32 cannot reflect images of 32 x 32 - choose less"),
        ("data.batch_size=149 model=mlp model.batch_norm=true", "leaves one image in an epoch's last batch"),
        ("scheduler=step scheduler.gamma=abc", "gamma=abc should be a number"),
        ("scheduler=step scheduler.step_size=0", "scheduler.step_size and scheduler.T_max are at least 1"),
        ("optim=sgd optim.momentum=-1", "Invalid momentum value: -1 - correct it"),
        ("scheduler=plateau scheduler.interval=step", "ReduceLROnPlateau"),
    ],
)
def test_a_value_that_only_the_data_or_torch_can_judge_is_refused_before_an_epoch(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, override: str, answer: str
) -> None:
    outcome = run(TRAIN, *tiny, "data.batch_size=15", *override.split())
    assert outcome.code == 2
    assert answer in outcome.err
    assert outcome.err.count("\n") == 1
    assert "epoch 1" not in outcome.out
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_network_that_memory_cannot_hold_is_exit_code_6(run, tiny: list[str]) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, *tiny, "model=mlp", "model.hidden=[1000000000000]")
    assert outcome.code == 6
    assert "choose a smaller network" in outcome.err


def test_no_gpu_is_exit_code_6(run, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = run(TRAIN, *tiny, "trainer.accelerator=gpu")
    assert outcome.code == 6
    assert outcome.err == "error: accelerator=gpu: none was found - use auto\n"


@pytest.mark.parametrize("place", ["hydra.run.dir=file/run", "hydra.sweep.dir=file/sweep"])
def test_a_place_that_cannot_be_written_is_exit_code_6(run, tiny: list[str], tmp_path: Path, place: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    outcome = run(TRAIN, *tiny, place, *(["-m"] if "sweep" in place else []))
    assert outcome.code == 6
    assert "file/" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_second_process_in_a_runs_folder_is_refused(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of the same microsecond, or one that is resumed twice at once."""
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    (tmp_path / "run").mkdir()
    with run_folder.claimed(tmp_path / "run"):
        outcome = run(TRAIN, *tiny, "model=mlp", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "another process trains in" in outcome.err
    assert not list(tmp_path.rglob("*.ckpt"))
    assert (tmp_path / "run" / run_folder.LOCK).is_file()  # of the first, which goes on in it


def test_a_job_that_another_process_is_at_is_not_told_to_have_failed(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    sweep = [*tiny, "-m", "model=mlp", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert run(TRAIN, *sweep).code == 0
    first = next((tmp_path / "sweep").glob("*seed0"))
    with run_folder.claimed(first):
        outcome = run(TRAIN, *sweep)
    assert outcome.code == 2
    assert outcome.err.count("another process trains in") == 1
    assert not list((tmp_path / "sweep").rglob("error.txt"))


def test_a_job_of_another_process_in_a_parallel_sweep_is_told(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of a launcher keep what they cannot do to themselves."""
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(cli, "_guarded", lambda job, cfg: float("nan"))
    (tmp_path / "sweep" / "0_mlp_seed0").mkdir(parents=True)
    with run_folder.claimed(tmp_path / "sweep" / "0_mlp_seed0"):
        outcome = run(TRAIN, *tiny, "-m", "model=mlp", "hydra.sweep.dir=sweep")
    assert outcome.code == 2
    assert "another process trains in 'sweep/0_mlp_seed0'" in outcome.err
    assert "\ngo on     litcifar-train" in outcome.out


def test_the_traceback_of_a_failed_job_is_told_where_it_is_asked_for(  # type: ignore[no-untyped-def]
    run, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Any, *arguments: Any) -> Any:
        raise LookupError("no such thing")

    monkeypatch.setattr(ImageClassifier, "training_step", broken)
    sweep = [*tiny, "-m", "model=mlp", "seed=0,1"]
    assert "in broken" not in run(TRAIN, *sweep, "hydra.sweep.dir=a").err
    assert run(TRAIN, *sweep, "hydra.sweep.dir=b", full_error=True).err.count("in broken") == 2


def test_a_sweep_whose_leaderboard_cannot_be_written_tells_its_failures(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep" / "leaderboard.csv").mkdir(parents=True)
    outcome = run(TRAIN, *tiny, "-m", "model=mlp", "optim.lr=1e-3,1e30", "hydra.sweep.dir=sweep")
    assert outcome.code == 6
    assert outcome.err.count("error: ") == 2
    assert "1_mlp_seed0: the loss became infinite or NaN" in outcome.err
    assert "cannot write 'sweep/leaderboard.csv'" in outcome.err


@pytest.mark.parametrize("asked", ["resume=run", "resume=run,other"])
def test_a_sweep_does_not_go_on_with_a_run(run, asked: str) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, "-m", asked, "trainer.max_epochs=2,3")
    assert outcome.code == 2
    assert outcome.err == f"error: {asked}: a resumed run goes on in its own folder - leave out -m\n"


def test_a_launcher_without_its_package_is_named_with_how_to_install_it() -> None:
    error = HydraException("In 'hydra/launcher/slurm': Could not load 'hydra/launcher/submitit_slurm'.")
    assert cli._composition_error(error, TRAIN) == "hydra/launcher=slurm needs submitit - pip install 'litcifar[slurm]'"


def test_the_values_of_a_question_may_all_be_given_beside_it(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {callbacks: {summary: {question: 'Which?', axis: model.hidden}}}\n"
    )
    asked = ["--config-dir", str(tmp_path), "sweep=mine", "model=mlp", "model.hidden=[8],[4]", "seed=0,1"]
    outcome = run(TRAIN, "-m", *asked, *tiny, "hydra.sweep.dir=answers")
    assert outcome.code == 0, outcome.err
    assert "cannot be told from it with 2 seeds" in outcome.out


def test_a_sweep_without_jobs_is_refused(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, "-m", "seed=range(3,3)")
    assert outcome.code == 2
    assert outcome.err == "error: the sweep has no jobs - give each key at least one value\n"


@pytest.mark.parametrize("mistake", ["model=conv_pool,resnet", "optim.lrr=1,2", "model=mlp,conv_pool optim.lrr=1"])
def test_a_sweep_with_a_mistake_is_refused_before_its_first_job(run, tmp_path: Path, mistake: str) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, "-m", *mistake.split())
    assert outcome.code == 2
    assert outcome.err.startswith("error: unknown ")
    assert not list(tmp_path.rglob("*seed*"))


def test_a_slurm_allocation_of_several_tasks_changes_nothing(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    outcome = run(TRAIN, *tiny, "model=mlp", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert run(EVALUATE, "ckpt=run", "figures=false").code == 0


def test_the_commands_that_are_told_can_be_run_whatever_the_folder_is_called(run, tiny: list[str]) -> None:  # type: ignore[no-untyped-def]
    outcome = run(TRAIN, *tiny, "model=mlp", "hydra.run.dir='größen (2)/lr=0.1'", "trainer.max_epochs=1")
    assert outcome.code == 0, outcome.err
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("evaluate"))
    program, *arguments = shlex.split(line.removeprefix("evaluate"))
    assert (program, arguments) == ("litcifar-evaluate", ["ckpt='größen (2)/lr=0.1/best.ckpt'"])
    assert run(EVALUATE, *arguments, "figures=false").code == 0
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("compare"))
    program, *arguments = shlex.split(line.removeprefix("compare"))
    assert (program, arguments) == ("litcifar-compare", ["folders=['größen (2)']"])
    assert run(COMPARE, *arguments).code == 0


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


def test_a_run_that_did_not_begin_leaves_a_folder_that_cannot_be_removed(  # type: ignore[no-untyped-def]
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(folder: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(folder))

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    nowhere = [f"data.root={tmp_path}/nowhere", "data.mirrors=[]"]
    assert run(TRAIN, "hydra.run.dir=.", *nowhere).code == 3
    assert not list((tmp_path / "here").iterdir())  # and it is still there, as the working folder
    monkeypatch.setattr(Path, "rmdir", busy)  # as of a volume that is mounted
    outcome = run(TRAIN, "hydra.run.dir=volume", *nowhere)
    assert (outcome.code, outcome.err.count("error: ")) == (3, 1)
    assert not list((tmp_path / "here" / "volume").iterdir())


def test_missing_and_foreign_checkpoints_are_exit_code_4(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    for missing in ("nowhere.ckpt", "https://example.org/x.ckpt", "/", "/dev/zero"):
        assert run(EVALUATE, f"ckpt={missing}").code == 4
        assert run(TRAIN, f"resume={missing}").code == 4
    for awkward in ("epoch=3-step=9.ckpt", "a(1).ckpt"):
        assert f"quote the value: \"ckpt='{awkward}'\"" in run(EVALUATE, f"ckpt={awkward}").err
        assert run(EVALUATE, f"ckpt='{awkward}'").code == 4
    assert run(TRAIN, "resume=a/b/c.ckpt").code == 4
    assert not (tmp_path / "a").exists()
    outcome = run(EVALUATE, "ckpt=text.ckpt")
    assert outcome.code == 4
    assert outcome.err.count("\n") == 1
    assert run(TRAIN, "resume=nowhere").code == 4
    assert run(COMPARE, "nowhere").code == 4


def test_a_mistake_in_an_evaluation_is_exit_code_2(run) -> None:  # type: ignore[no-untyped-def]
    for mistake, message in {"tta=flip": "tta=flip - input should be", "ttaa=mirror": "did you mean 'tta'?"}.items():
        outcome = run(EVALUATE, "ckpt=nowhere.ckpt", mistake)
        assert outcome.code == 2
        assert message in outcome.err


def test_an_evaluation_whose_folder_cannot_be_written_is_exit_code_6(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run(TRAIN, "model=mlp", *tiny, "hydra.run.dir=run")
    (tmp_path / "run" / "evaluation").touch()
    outcome = run(EVALUATE, "ckpt=run")
    assert outcome.code == 6
    assert "run/evaluation' is no folder" in outcome.err
    assert outcome.err.endswith(" - give another one: folder=...\n")
    assert "val/acc" not in outcome.out
    assert run(EVALUATE, "ckpt=run", "folder=answers", "figures=false").code == 0
    assert (tmp_path / "answers" / "test" / "predictions.csv").exists()


def test_a_look_at_the_data(run, tiny_cifar10: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = run(LOOK, f"data.root={tiny_cifar10}", "data.verify=false", "data.val_size=50", "augment=standard")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in sorted((tmp_path / "outputs" / "look").iterdir())] == ["augmented.png", "images.png"]
    assert "augmented   outputs/look/augmented.png" in outcome.out
    for mistake, answer in {
        "augment=standrd": "unknown augment=standrd - did you mean 'standard'?",
        "augment.flips=random": "unknown key 'augment.flips' - did you mean 'augment.flip'?",
        "folders=x": "unknown key 'folders' - did you mean 'folder'?",
        "columns=1": "columns=1 - input should be greater than or equal to 2",
    }.items():
        mistaken = run(LOOK, mistake)
        assert mistaken.code == 2
        assert answer in mistaken.err
    assert run(LOOK, f"data.root={tmp_path / 'nowhere'}", "data.mirrors=[]").code == 3


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
    for split in ("val", "test"):
        assert (folder / "evaluation" / "best" / split / "predictions.csv").exists()
        assert f"{split:9} {folder}/evaluation/best/{split}/report.html".replace(f"{tmp_path}/", "") in evaluated.out
    compared = run(COMPARE, "outputs")
    assert compared.code == 0
    assert "mlp" in compared.out
    assert (tmp_path / "outputs" / "leaderboard.csv").exists()


def test_a_run_is_not_cut_short_below_what_it_has_trained(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path
) -> None:
    assert run(TRAIN, "model=mlp", *tiny, "trainer.max_epochs=2", "hydra.run.dir=run").code == 0
    (tmp_path / "run" / "metrics.json").unlink()
    outcome = run(TRAIN, "resume=run", "trainer.max_epochs=1")
    assert outcome.code == 2
    assert "max_epochs" in outcome.err
    assert outcome.err.count("\n") == 1


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_in_an_evaluation_ends_it_in_order(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, swallowed: bool
) -> None:
    run(TRAIN, "model=mlp", *tiny, "hydra.run.dir=run")
    evaluated = ImageClassifier._evaluate

    def interrupted(*arguments: Any) -> Any:
        with contextlib.suppress(*([Interrupted] if swallowed else [])):  # as in a callback that Python calls by itself
            signal.raise_signal(number)
        return evaluated(*arguments)

    monkeypatch.setattr(ImageClassifier, "_evaluate", interrupted)
    before = signal.getsignal(number)
    outcome = run(EVALUATE, "ckpt=run")
    signal.signal(number, before)
    assert outcome.code == code
    assert outcome.err == f"error: stopped by {signal.Signals(number).name} - run the command again\n"


def test_a_signal_in_the_test_leaves_a_run_that_goes_on(  # type: ignore[no-untyped-def]
    run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "test_step", lambda *_: signal.raise_signal(signal.SIGTERM))
        before = signal.getsignal(signal.SIGTERM)
        outcome = run(TRAIN, "model=mlp", *tiny, "hydra.run.dir=run")
        signal.signal(signal.SIGTERM, before)
    assert outcome.code == 143
    assert outcome.err == "error: stopped by SIGTERM - go on with: litcifar-train resume=run\n"
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert run(TRAIN, "resume=run").code == 0
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_reader_that_has_seen_enough_ends_the_run_quietly(tiny: list[str], tmp_path: Path) -> None:
    """litcifar-train ... | head -1"""
    command = [str(Path(sys.executable).parent / "litcifar-train"), "model=mlp", "hydra.run.dir=run", *tiny]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 128 + 13


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).parent / arguments[0]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", "TERM": "dumb"}
    environment.pop("HOME", None)  # as in a container
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


def test_a_process_of_its_own_gives_the_same_numbers(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = script("litcifar-train", "model=mlp", "model.dropout=0.1", *tiny, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "best epoch 1 of 1" in ended.stdout
    (folder,) = (tmp_path / "outputs" / "mlp").iterdir()
    assert run(TRAIN, "model=mlp", "model.dropout=0.1", *tiny, "hydra.run.dir=here").code == 0
    assert same(result(folder), result(tmp_path / "here"))


@pytest.mark.parametrize("command", [TRAIN, EVALUATE, COMPARE, LOOK, PREDICT, EXPORT, DEMO])
def test_help_names_keys_and_examples_that_there_are(run, command: str) -> None:  # type: ignore[no-untyped-def]
    outcome = run(command, "--help")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"litcifar-{command} ")
    assert max(map(len, lines[:1] + [line for line in lines if line.startswith("  ")])) <= 125
    keys = flat(compose(command))
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    named = re.findall(r"^  ([\w.]+)=\S+ .{5}", outcome.out, re.MULTILINE)
    assert len(named) >= 2
    assert set(named) <= keys.keys()
    examples = [line for line in lines if line.startswith(f"  litcifar-{command}")]
    assert len(examples) == 5
    for example in examples:
        words = shlex.split(example.partition("    (")[0].replace("<time>", "T"))
        given = [word for word in words if "=" in word]
        if "-m" in words:
            assert {word.partition("=")[0] for word in given} <= {*keys, *groups}
        else:
            compose(command, *given)  # hydra raises where there is no such key or option
    for group in set(groups) - {"base", "hydra"} if command == TRAIN else ():
        assert f"\n{group}: " in outcome.out


def test_the_configuration_can_be_printed(run) -> None:  # type: ignore[no-untyped-def]
    for command, key in {
        TRAIN: "max_epochs: 10",
        COMPARE: "- outputs",
        PREDICT: "top: 3",
        EXPORT: "format: onnx",
        DEMO: "host: 127.0.0.1",
    }.items():
        outcome = run(command, "--cfg", "job")
        assert (outcome.code, outcome.err) == (0, "")
        assert key in outcome.out


def test_completion_in_bash(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    installed = run(TRAIN, "-sc", "install=bash")
    assert installed.code == 0
    assert installed.out.endswith("-F hydra_bash_completion litcifar-train\n")
    code = "import sys; from litcifar import cli\ntry: cli.train()\nfinally: print(*sys.modules, file=sys.stderr)"
    for line, completed in {
        "litcifar-train model=": "model=conv_pool model=mlp model=own",
        "litcifar-train model=mlp model.hid": "model.hidden.",
        "litcifar-train -m optim=sgd optim.mom": "optim.momentum=",
    }.items():
        command = [sys.executable, "-c", code, "-sc", "query=bash"]
        environment = {**os.environ, "COMP_LINE": line}
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == completed
        assert not {"torch", "lightning", "pydantic", "rich", "numpy"} & set(answer.stderr.split())


def test_a_mistake_in_a_demo_is_one_line(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for mistake, answer in {
        "port=80": "'ckpt' is missing - give it: ckpt=...",
        "ckpt=nowhere port=65536": "port=65536 - input should be less than or equal to 65535",
        "ckpt=nowhere port=any": "port=any - input should be a valid integer",
        "ckpt=nowhere host=": "host= - string should have at least 1 character",
        "ckpt=nowhere share=true": "unknown key 'share'",
        "ckpt=nowhere data.rot=x": "unknown key 'data.rot' - did you mean 'data.root'?",
    }.items():
        outcome = run(DEMO, *mistake.split())
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert answer in outcome.err
    outcome = run(DEMO, "ckpt=nowhere")
    assert outcome.code == 4
    assert outcome.err == "error: no checkpoint 'nowhere' - give a run's folder or a checkpoint\n"
    assert not list(tmp_path.iterdir())


def test_predict_and_export(run, tiny: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run(TRAIN, "model=mlp", "hydra.run.dir=run", *tiny).code == 0
    (tmp_path / "photos").mkdir()
    awkward = ["a(1).png", "b c.png", "it's.png", "d[1].png", "*.png", r"e\f.png"]
    for name in awkward:
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / name)
    outcome = run(PREDICT, *(f"photos/{name}" for name in awkward), "ckpt=run", "top=1")
    assert outcome.code == 0, outcome.err
    assert [line.split(".png")[0] for line in outcome.out.splitlines()[1:-1]] == [f"photos/{n[:-4]}" for n in awkward]
    (tmp_path / "photos" / "e.png").write_text("no image")
    for images in ("photos", "images=photos", "images=photos/*", "images=[photos]"):
        outcome = run(PREDICT, "ckpt=run", images)
        assert outcome.code == 4
        assert outcome.err == "error: 1 of 7 images could not be read - their rows say why\n"
        assert outcome.out.count(" %") == 18
    for nothing in ("*.gif", "images=*.gif"):
        outcome = run(PREDICT, "ckpt=run", nothing)
        assert outcome.code == 4
        assert outcome.err.startswith("error: '*.gif' has no images - ")
    assert run(EXPORT, "ckpt=run", "format=pt2").code == 0
    for mistake, answer in {
        "photos output=photos/e.png": "has to end in .csv or .json",
        "photos top=0": "top=0 - input should be greater than or equal to 1",
        "top=2": "'images' is missing - give it: images=...",
        "images=[photos/a.png] photos/b.png": "images=... beside 'photos/b.png': the one would be lost - write",
    }.items():
        outcome = run(PREDICT, "ckpt=run", *mistake.split())
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert answer in outcome.err
    for mistake, answer in {
        "format=torchscript": "format=torchscript - input should be 'onnx' or 'pt2'",
        "format=pt2": "is there already - set overwrite=true, or give another output",
    }.items():
        outcome = run(EXPORT, "ckpt=run", mistake)
        assert outcome.code == 2
        assert answer in outcome.err


def overrides(count: int, seed: int) -> list[str]:
    """Overrides that somebody in a hurry might write: of the configuration's own keys, and most of them wrong."""
    rng = random.Random(seed)
    keys = flat(compose("train"))
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    values = [
        *("ten", "1.5", "-1", "0", "1", "true", "null", "[]", "[1,2]", "[a]", "{a:1}", "nan", "inf", "-1e-3", "1e400"),
        *("''", "'8'", "a/b", "../..", "~/x", "${seed}", "${nope}", "${oc.env:NOPE}", "???", "2**3", "0x10", "1_000"),
        *("[1,2", "{a:1", "'a", "a b", "\u00e9", "mlp", "torch.optim.Nope", "os.system", "9" * 30, "a=b", "(1)", "\\"),
        *("#x", "", "3,4", "1e-3"),
    ]

    def misspelt(word: str) -> str:
        place = rng.randrange(len(word))
        return rng.choice([word[:place] + word[place + 1 :], word[:place] + rng.choice("aeox_.") + word[place:]])

    kinds: list[Callable[[str], str]] = [
        lambda key: f"{key}={rng.choice(values)}",
        lambda key: f"{key}={rng.choice(values)}",
        lambda key: f"{key}={rng.choice(values)}",
        lambda key: f"+{key}={rng.choice(values)}",
        lambda key: f"++{key}={rng.choice(values)}",
        lambda key: f"{misspelt(key)}={rng.choice(values)}",
        lambda key: f"+{misspelt(key)}={keys[key]}",
        lambda key: f"{key.rpartition('.')[2]}={rng.choice(values)}",
        lambda key: f"~{key}",
        lambda key: key,
        lambda key: f"--{key.rpartition('.')[2]}={rng.choice(values)}",
        lambda key: f"{key}:{rng.choice(values)}",
        lambda key: f"{rng.choice(groups)}={rng.choice(values)}",
        lambda key: f"{misspelt(rng.choice(groups))}={rng.choice(['mlp', 'adam', 'none'])}",
    ]
    return [rng.choice(kinds)(rng.choice(sorted(keys))) for _ in range(count)]


def has_effect(override: str, config: TrainConfig) -> bool:
    """Whether the configuration is what the override asked for."""
    parsed = OverridesParser.create().parse_override(override)
    key = parsed.key_or_group
    got = flat(config.model_dump(by_alias=True))
    if parsed.is_delete():
        return key not in got
    if (conf_dir() / key).is_dir():
        return (conf_dir() / key / f"{parsed.value()}.yaml").exists()
    wanted = parsed.value()
    if isinstance(wanted, str) and wanted.startswith("${"):
        return True
    if key == "data.root":
        return got[key] == str(Path(str(wanted)).absolute())
    return got.get(key, config.model_dump(by_alias=True).get(key)) == wanted


@pytest.mark.parametrize(("count", "seed"), [(25, 0), pytest.param(300, 1, marks=pytest.mark.slow)])
def test_whatever_is_written_is_refused_in_one_line_or_has_its_effect(  # type: ignore[no-untyped-def]
    run, monkeypatch: pytest.MonkeyPatch, count: int, seed: int
) -> None:
    configs: list[TrainConfig] = []

    def train(config: TrainConfig, run_dir: Path, changed: tuple[str, ...], callbacks: list[Any]) -> dict[str, float]:
        configs.append(config)
        return {"val/acc": 0.5}

    monkeypatch.setattr("litcifar.training.train", train)
    wrong, refused, longest = [], 0, 0.0
    for override in overrides(count, seed):
        configs.clear()
        start = time.perf_counter()
        outcome = run(TRAIN, override)
        longest = max(longest, time.perf_counter() - start)
        if outcome.code == 0:
            right = len(configs) == 1 and has_effect(override, configs[0])
        else:
            right = outcome.code in (2, 4) and bool(re.fullmatch(r"error: .+ - .+\n", outcome.err)) and not configs
            refused += 1
        if not right:
            wrong.append((override, outcome.code, outcome.out[-200:], outcome.err[-500:]))
    assert not wrong
    assert refused > 0.7 * count
    print(f"{refused} of {count} refused, the slowest answer took {longest:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("override", ["sede=1", "seed=ten", "--seed=1", "seed=[1", "model=nope", "resume=nowhere"])
def test_a_mistake_is_answered_before_torch_could_be_imported(tmp_path: Path, override: str) -> None:
    """Within three seconds where the machine has nothing else to do."""
    start = time.perf_counter()
    result = script("litcifar-train", override, cwd=tmp_path)
    seconds = time.perf_counter() - start
    assert result.returncode == (4 if "resume" in override else 2)
    assert re.fullmatch(r"error: .+ - .+\n", result.stderr)
    print(f"{seconds:.1f} s")
    assert seconds < 10
