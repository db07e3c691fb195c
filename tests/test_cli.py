"""The console scripts: what each of them does with its configuration, and what it refuses before it begins."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from litcifar.keys import compose, conf_dir, flat
from tests.conftest import COMPARE, DEMO, EVALUATE, EXPORT, LOOK, PREDICT, TRAIN, Run, script
from tests.test_training import result, same


def test_a_choice_that_sets_many_keys_is_a_change_of_a_resumed_run(run: Run, tiny: list[str], tmp_path: Path) -> None:
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
def test_a_value_that_only_the_data_or_torch_can_judge_is_refused_before_an_epoch(
    run: Run, tiny: list[str], tmp_path: Path, override: str, answer: str
) -> None:
    outcome = run(TRAIN, *tiny, "data.batch_size=15", *override.split())
    assert outcome.code == 2
    assert answer in outcome.err
    assert outcome.err.count("\n") == 1
    assert "epoch 1" not in outcome.out
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_experiments_own_keys_are_told_beside_a_group_that_they_overrule(run: Run, tiny: list[str]) -> None:
    fast = ["experiment=quickstart", *tiny, "model.widths=[4]", "augment.resolution=null"]
    note = "note      experiment=quickstart keeps augment.translate=2 beside augment=none\n"
    assert note in run(TRAIN, *fast, "augment=none").out
    assert "note " not in run(TRAIN, *fast, "augment=none", "augment.translate=0").out
    assert "note " not in run(TRAIN, *fast, "augment.flip=none", "data=cifar10").out


def test_an_optimizer_may_be_chosen_beside_an_experiment_without_what_it_has_not(run: Run, tiny: list[str]) -> None:
    command = ["experiment=quickstart", "optim=adam", "~optim.momentum", "~optim.nesterov", *tiny, "model.widths=[4]"]
    outcome = run(TRAIN, *command, "augment.resolution=null")
    assert outcome.code == 0, outcome.err
    assert " keeps optim.lr=" in outcome.out


def test_the_values_of_a_question_may_all_be_given_beside_it(run: Run, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {callbacks: {summary: {question: 'Which?', axis: model.hidden}}}\n"
    )
    asked = ["--config-dir", str(tmp_path), "sweep=mine", "model=mlp", "model.hidden=[8],[4]", "seed=0,1"]
    outcome = run(TRAIN, "-m", *asked, *tiny, "hydra.sweep.dir=answers")
    assert outcome.code == 0, outcome.err
    assert "cannot be told from it with 2 seeds" in outcome.out


def test_a_slurm_allocation_of_several_tasks_changes_nothing(
    run: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    outcome = run(TRAIN, *tiny, "model=mlp", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert run(EVALUATE, "ckpt=run", "figures=false").code == 0


def test_the_commands_that_are_told_can_be_run_whatever_the_folder_is_called(run: Run, tiny: list[str]) -> None:
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


def test_a_mistake_inside_an_experiment_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nsede: 1\nmodel: {widht: 3}\n")
    outcome = run(TRAIN, "--config-dir", str(tmp_path), "experiment=typo")
    assert outcome.code == 2
    assert "unknown key 'sede' - did you mean 'seed'?" in outcome.err
    assert "unknown key 'model.widht' - did you mean 'model.widths'?" in outcome.err


def test_missing_and_foreign_checkpoints_are_exit_code_4(run: Run, tmp_path: Path) -> None:
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


def test_a_mistake_in_an_evaluation_is_exit_code_2(run: Run) -> None:
    for mistake, message in {"tta=flip": "tta=flip - input should be", "ttaa=mirror": "did you mean 'tta'?"}.items():
        outcome = run(EVALUATE, "ckpt=nowhere.ckpt", mistake)
        assert outcome.code == 2
        assert message in outcome.err


def test_an_evaluation_whose_folder_cannot_be_written_is_exit_code_6(run: Run, tiny: list[str], tmp_path: Path) -> None:
    run(TRAIN, "model=mlp", *tiny, "hydra.run.dir=run")
    (tmp_path / "run" / "evaluation").touch()
    outcome = run(EVALUATE, "ckpt=run")
    assert outcome.code == 6
    assert "run/evaluation' is no folder" in outcome.err
    assert outcome.err.endswith(" - give another one: folder=...\n")
    assert "val/acc" not in outcome.out
    assert run(EVALUATE, "ckpt=run", "folder=answers", "figures=false").code == 0
    assert (tmp_path / "answers" / "test" / "predictions.csv").exists()


def test_a_look_at_the_data(run: Run, tiny_cifar10: Path, tmp_path: Path) -> None:
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


def test_train_evaluate_compare(run: Run, tiny: list[str], tmp_path: Path) -> None:
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


def test_a_run_is_not_cut_short_below_what_it_has_trained(run: Run, tiny: list[str], tmp_path: Path) -> None:
    assert run(TRAIN, "model=mlp", *tiny, "trainer.max_epochs=2", "hydra.run.dir=run").code == 0
    (tmp_path / "run" / "metrics.json").unlink()
    outcome = run(TRAIN, "resume=run", "trainer.max_epochs=1")
    assert outcome.code == 2
    assert "max_epochs" in outcome.err
    assert outcome.err.count("\n") == 1


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


def test_a_process_of_its_own_gives_the_same_numbers(run: Run, tiny: list[str], tmp_path: Path) -> None:
    ended = script("litcifar-train", "model=mlp", "model.dropout=0.1", *tiny, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "best epoch 1 of 1" in ended.stdout
    (folder,) = (tmp_path / "outputs" / "mlp").iterdir()
    assert run(TRAIN, "model=mlp", "model.dropout=0.1", *tiny, "hydra.run.dir=here").code == 0
    assert same(result(folder), result(tmp_path / "here"))


@pytest.mark.parametrize("command", [TRAIN, EVALUATE, COMPARE, LOOK, PREDICT, EXPORT, DEMO])
def test_help_names_keys_and_examples_that_there_are(run: Run, command: str) -> None:
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


def test_the_configuration_can_be_printed(run: Run) -> None:
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


def test_completion_in_bash(run: Run, tmp_path: Path) -> None:
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


def test_a_mistake_in_a_demo_is_one_line(run: Run, tmp_path: Path) -> None:
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


def test_predict_and_export(run: Run, tiny: list[str], tmp_path: Path) -> None:
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
