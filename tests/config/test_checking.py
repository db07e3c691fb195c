"""A mistake is told with its key, and all of them at once."""

import pytest

from litcifar import config
from litcifar.config import TrainConfig, check, train_config
from litcifar.errors import ConfigError
from tests.conftest import Compose


@pytest.mark.parametrize("override", ["optim.lr=0.0", "model.widths=[]", "data.val_size=0", "model.std=[1,1,0]"])
def test_values_out_of_range_are_refused(compose: Compose, override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        compose(override)


def test_all_mistakes_are_told_at_once() -> None:
    composed = config.compose("train")
    composed["seed"] = -1
    composed["sede"] = 1
    composed["model"]["pool_size"] = "two"
    with pytest.raises(ConfigError) as error:
        check(composed, TrainConfig)
    for part in ("seed=-1", "unknown key 'sede' - did you mean 'seed'?", "model.pool_size=two"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_user_has_to_give_is_missing_until_it_is_given() -> None:
    with pytest.raises(ConfigError, match=r"^'data\.root' is missing - give it: data\.root=\.\.\.$"):
        train_config("data=image_folder")
    own = ("model=own", "model._target_=my.Net", "trust=[my]", "+model.width=???")
    with pytest.raises(ConfigError, match=r"^'model\.width' is missing - give it: model\.width=\.\.\.$"):
        train_config(*own)
