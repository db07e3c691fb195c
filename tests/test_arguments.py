"""Every mistake on the command line is answered in one line, with what to write instead."""

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from litcifar.arguments import composition_error
from litcifar.config import TrainConfig
from litcifar.keys import compose, conf_dir, flat
from tests.conftest import TRAIN, Run, script

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
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, mistake: str) -> None:
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
        (
            ["model=mlp", "model.nonsense=3"],
            "error: unknown key 'model.nonsense' - choose from model._target_, model.activation, model.batch_norm, "
            "model.dropout, model.hidden, model.init, model.l1, model.label_smoothing, model.loss_reduction, "
            "model.mean, model.std\n",
        ),
        (
            ["model=own", "model._target_=my_net.Net", "model.depth=3"],
            "error: unknown key 'model.depth' - choose from model._target_, model.l1, model.label_smoothing, "
            "model.loss_reduction, model.mean, model.std; an argument of a class beyond these is +model.depth=...\n",
        ),
        (
            ["experiment=simple_cnn", "model=mlp"],
            "error: model=mlp: experiment=simple_cnn gives model.widths, model.padding, which that has not - leave one "
            "of the two out, or add '~model.widths' '~model.padding'\n",
        ),
        (
            ["experiment=speed_94", "optim=adam"],
            "error: optim=adam: experiment=speed_94 gives optim.momentum, optim.nesterov, which that has not - leave "
            "one of the two out, or add '~optim.momentum' '~optim.nesterov'\n",
        ),
        (
            ["optim._target_=torch.optim.RMSprop", "optim.alpha=0.9"],
            "error: unknown key 'optim.alpha' - choose from optim._target_, optim.groups, optim.lr, optim.weight_decay"
            "; an argument of a class beyond these is +optim.alpha=...\n",
        ),
    ],
)
def test_a_mistake_is_answered_with_what_to_write(run: Run, arguments: list[str], answer: str) -> None:
    outcome = run(TRAIN, *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(answer)
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "argument", [f"data.classes=[{','.join(f'class{n}' for n in range(99))}]", "resume=~nobody/run"]
)
def test_what_no_file_can_be_called_is_a_line_too(run: Run, argument: str) -> None:
    outcome = run(TRAIN, "model=mlp", "data=shapes", argument)
    assert outcome.code in (2, 4)
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_hydras_options_may_stand_anywhere(run: Run, tiny: list[str]) -> None:
    outcome = run(TRAIN, "model=mlp", "--cfg", "job", "seed=3")
    assert outcome.code == 0
    assert "seed: 3" in outcome.out


@pytest.mark.parametrize("asked", ["resume=run", "resume=run,other"])
def test_a_sweep_does_not_go_on_with_a_run(run: Run, asked: str) -> None:
    outcome = run(TRAIN, "-m", asked, "trainer.max_epochs=2,3")
    assert outcome.code == 2
    assert outcome.err == f"error: {asked}: a resumed run goes on in its own folder - leave out -m\n"


def test_a_launcher_without_its_package_is_named_with_how_to_install_it() -> None:
    error = HydraException("In 'hydra/launcher/slurm': Could not load 'hydra/launcher/submitit_slurm'.")
    assert composition_error(error, TRAIN) == "hydra/launcher=slurm needs submitit - pip install 'litcifar[slurm]'"


@pytest.mark.parametrize("mistake", ["model=conv_pool,resnet", "optim.lrr=1,2", "model=mlp,conv_pool optim.lrr=1"])
def test_a_sweep_with_a_mistake_is_refused_before_its_first_job(run: Run, tmp_path: Path, mistake: str) -> None:
    outcome = run(TRAIN, "-m", *mistake.split())
    assert outcome.code == 2
    assert outcome.err.startswith("error: unknown ")
    assert not list(tmp_path.rglob("*seed*"))


def test_a_key_of_another_family_is_explained_by_the_chosen_one(run: Run) -> None:
    outcome = run(TRAIN, "model=mlp", "model.hiden=[3]")
    assert "did you mean 'model.hidden'?" in outcome.err


def test_resume_goes_on_in_the_same_folder(run: Run, tiny: list[str], tmp_path: Path) -> None:
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


def test_a_run_in_a_folder_that_has_another_is_refused_and_changes_nothing(
    run: Run, tiny: list[str], tmp_path: Path
) -> None:
    command = ["model=mlp", "hydra.run.dir='my run'", *tiny]
    assert run(TRAIN, *command).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "my run").rglob("*") if path.is_file()}
    outcome = run(TRAIN, *command, "optim.lr=0.5")
    assert outcome.code == 2
    assert "optim.lr=0.5 (was 0.001)" in outcome.err
    assert before == {path: path.read_bytes() for path in (tmp_path / "my run").rglob("*") if path.is_file()}


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
def test_whatever_is_written_is_refused_in_one_line_or_has_its_effect(
    run: Run, monkeypatch: pytest.MonkeyPatch, count: int, seed: int
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
