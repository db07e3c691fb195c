"""The schema of a run is the configuration's, the constructors' and Lightning's at once."""

import inspect
from typing import get_type_hints

import lightning.pytorch as L
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from litcifar import config
from litcifar.config import TrainConfig, plain, run
from litcifar.config.values import Node
from litcifar.data import CIFAR10DataModule, ImageDataModule, ImageFolderDataModule, ShapesDataModule
from litcifar.data.augment import Augment
from litcifar.errors import ConfigError
from litcifar.keys import flat, opened
from litcifar.models import MLP, ConvPool
from litcifar.models.classifier import ClassifierOptions
from litcifar.training import OPTIMIZATION
from tests.conftest import Compose

FILLED_IN = OPTIMIZATION | {"augment", "seed", "optim", "scheduler", "num_classes", "self", "splits", "options"}


def fields(node: type[Node]) -> set[str]:
    return set(node.model_fields) - {"target", "fallback"}


@pytest.mark.parametrize(("schema", "built"), [(run.MLPConfig, MLP), (run.ConvPoolConfig, ConvPool)])
def test_a_model_takes_exactly_the_keys_of_its_schema(schema: type[Node], built: type) -> None:
    own = set(inspect.signature(built).parameters) | set(get_type_hints(ClassifierOptions))
    assert fields(schema) == own - FILLED_IN - {"classes", "image_size"}


@pytest.mark.parametrize(
    ("schema", "built"),
    [
        (run.CIFAR10Config, CIFAR10DataModule),
        (run.ShapesConfig, ShapesDataModule),
        (run.ImageFolderConfig, ImageFolderDataModule),
    ],
)
def test_a_data_module_takes_exactly_the_keys_of_its_schema(schema: type[Node], built: type) -> None:
    own = set(inspect.signature(built).parameters) | set(inspect.signature(ImageDataModule).parameters)
    assert fields(schema) == own - FILLED_IN


def test_augment_takes_exactly_the_keys_of_its_schema() -> None:
    assert fields(run.AugmentConfig) == set(inspect.signature(Augment).parameters) - FILLED_IN


def test_every_flag_of_the_trainer_is_a_key_or_filled_in() -> None:
    ours = {"logger", "callbacks", "default_root_dir", "enable_model_summary", "enable_checkpointing"}
    of_several_processes = {"strategy", "num_nodes", "sync_batchnorm", "plugins", "use_distributed_sampler"}
    # A run logs and validates once an epoch, at its end, and keeps its loaders.
    senseless_here = {"log_every_n_steps", "val_check_interval", "reload_dataloaders_every_n_epochs", "fast_dev_run"}
    senseless_here |= {"barebones", "inference_mode", "limit_predict_batches", "min_steps", "enable_autolog_hparams"}
    senseless_here |= {"model_registry"}
    all_flags = set(inspect.signature(L.Trainer).parameters)
    assert fields(run.TrainerConfig) | ours | of_several_processes | senseless_here == all_flags


def test_the_default_configuration_is_complete(compose: Compose) -> None:
    composed = config.compose("train")
    checked = plain(compose(tiny=False))
    assert flat(checked).keys() == flat(composed).keys()
    assert TrainConfig.model_validate(checked) == compose(tiny=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.groups.nrom.lr=0.1", "optim.groups.nrom=.* - .*'stem', 'norm', 'head', 'hidden' or 'bias'"),
        ("optim.groups.norm.until=0.0", "optim.groups.norm.until=0.0 - .*greater than 0"),
        ("optim.groups.norm.until=1.5", "optim.groups.norm.until=1.5 - .*less than or equal to 1"),
        ("optim.groups.norm=0.1", "optim.groups.norm=0.1 - "),
        ("optim._target_=litcifar.optim.os.system", "optim._target_=litcifar.optim.os.system - "),
        ("scheduler._target_=litcifar.models.MLP", "scheduler._target_=litcifar.models.MLP - "),
    ],
)
def test_optimizers_groups_and_schedules_of_another_kind_are_refused(
    compose: Compose, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("scheduler=triangular", override)


@pytest.mark.parametrize(
    ("overrides", "resolution", "groups"),
    [
        ([], {20: 0.15, 24: 0.55}, {"hidden", "norm", "head", "stem"}),
        (["augment.resolution={20:0.25}"], {20: 0.25}, {"hidden", "norm", "head", "stem"}),
        (["augment.resolution.20=0.25", "augment.resolution.24=0.75"], {24: 0.75, 20: 0.25}, None),
        (["optim.groups={head:{lr:1}}", "optim.groups.norm.lr=2"], {20: 0.15, 24: 0.55}, {"head", "norm"}),
        (["optim.groups={}", "augment.resolution=null"], None, set()),
        (["augment.resolution=null", "augment.resolution={16:1}"], {16: 1}, None),
    ],
)
def test_mappings_of_free_keys_are_replaced_as_a_whole_or_added_to(
    overrides: list[str], resolution: dict[int, float] | None, groups: set[str] | None
) -> None:
    checked = config.train_config("experiment=fast_85", *overrides)
    assert checked.augment.resolution == resolution
    if groups is not None:
        assert checked.optim.groups.keys() == groups


def test_cuda_graphs_do_not_add_up_gradients(compose: Compose) -> None:
    parts = "trainer.accumulate_grad_batches=2"
    with pytest.raises(
        ConfigError, match=r"compile=max-autotune is of CUDA graphs.+ - set compile=max-autotune-no-cuda"
    ):
        compose("compile=max-autotune", parts)
    assert compose("compile=max-autotune-no-cudagraphs", parts).compile == "max-autotune-no-cudagraphs"


def test_each_job_of_a_sweep_over_mappings_has_its_own() -> None:
    swept = opened(["augment.resolution={20:0.25},{16:0.5}", "optim.groups.norm.lr=1,2"])
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(swept), None)
    checked = [config.train_config("experiment=fast_85", *job) for job in jobs]
    found = [(job.augment.resolution, job.optim.groups["norm"].model_extra) for job in checked]
    norm = [{"lr": 1, "weight_decay": 0.02}, {"lr": 2, "weight_decay": 0.02}]
    assert found == [({20: 0.25}, norm[0]), ({20: 0.25}, norm[1]), ({16: 0.5}, norm[0]), ({16: 0.5}, norm[1])]
