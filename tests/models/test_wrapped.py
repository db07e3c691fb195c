"""A user's own network: wrapped or a classifier itself, trained, reloaded, and refused where it does not fit."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from litcifar import training
from litcifar.checkpoints import model_of, read
from litcifar.errors import CheckpointError, ConfigError
from litcifar.models import ImageClassifier, Wrapped, build_model
from tests.conftest import Compose

OWN = """
import torch
from torch import nn
from litcifar.models import ImageClassifier

class Net(nn.Module):
    def __init__(self, width=4, num_classes=7):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))

class TenClasses(Net):
    def __init__(self):
        super().__init__(num_classes=10)

class Patches(nn.Module):
    def __init__(self, image_size, num_classes):
        super().__init__()
        self.head = nn.Linear(3 * image_size**2, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))

class Forgetful(ImageClassifier):
    def __init__(self, **options):
        super().__init__(**options)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(self.image_size**2 * 3, len(self.classes)))

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(10)

    def forward(self, images):
        return self.head(images.flatten(1))

class Linear(ImageClassifier):
    def __init__(self, bias=True, **options):
        super().__init__(**options)
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(self.image_size**2 * 3, len(self.classes), bias))

class Sized(Net):
    def forward(self, images):
        assert images.shape[2] == 32
        return super().forward(images)

class Wrong(Net):
    def __init__(self):
        super().__init__(num_classes=3)

class Broken(nn.Module):
    def forward(self, images):
        return images @ images.new_zeros(7, 7)

class Pair(Net):
    def forward(self, images):
        return super().forward(images), images

def function():
    return Net()
"""


@pytest.fixture(autouse=True)
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """own_nets.py in the working folder."""
    (tmp_path / "own_nets.py").write_text(OWN)
    (tmp_path / "own_mistake.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("own_nets", "own_mistake"):
        sys.modules.pop(name, None)


def build_own(name: str, **options: object) -> ImageClassifier:
    return build_model({"_target_": f"own_nets.{name}", **options}, ["own_nets"], classes=[*"abcdefghij"])


def test_a_wrapped_network_sees_normalised_images_channels_first() -> None:
    model = build_own("Net", width=5, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])
    assert isinstance(model, Wrapped)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    layers = list(model.net)  # type: ignore[call-overload]
    pixels = (images / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.2, 0.1])
    model.eval()
    torch.testing.assert_close(model(images), layers[1](pixels.permute(0, 3, 1, 2)))
    assert model(images).shape == (3, 10)  # num_classes is given to who takes it
    assert build_own("Net").training


def test_a_network_of_one_size_refuses_smaller_images_in_one_line(compose: Compose, tmp_path: Path) -> None:
    own = ["model=own", "model._target_=own_nets.Sized", "trust=[own_nets]", "augment.resolution={16:0.5}"]
    with pytest.raises(ConfigError, match=r"^augment\.resolution: 16 pixels do not fit this network - "):
        training.train(compose(*own), tmp_path)


@pytest.mark.parametrize("name", ["Net", "TenClasses", "Lazy", "Linear", "Patches"])
def test_it_is_trained_saved_and_reloaded(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    options = {"Net": ["+model.width=6"], "Linear": ["+model.bias=false"]}.get(name, [])
    own = ["model=own", f"model._target_=own_nets.{name}", "trust=[own_nets]", "ema=0.5", *options]
    metrics = training.train(compose(*own), tmp_path / "run")
    assert metrics["config"]["model"]["_target_"] == f"own_nets.{name}"
    assert "litcifar-evaluate ckpt=run/best.ckpt 'trust=[own_nets]'\n" in capsys.readouterr().out
    checkpoint = read(tmp_path / "run" / "best.ckpt")
    model = model_of(checkpoint, ["own_nets"])
    for key, weight in checkpoint["state_dict"].items():
        assert torch.equal(weight, model.state_dict()[key])
    if name == "Net":
        assert model.net[1].conv.out_channels == 6  # type: ignore[index]
    if name == "Linear":
        assert model.net[1].bias is None  # type: ignore[index]
    for trust in ([], ["own"], ["own_net"], ["litcifar"]):
        with pytest.raises(
            CheckpointError, match=r"own_nets\.\w+ is code from outside litcifar, .* trust=\[own_nets\]"
        ):
            model_of(checkpoint, trust)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own_nets.Wrong", r"own_nets\.Wrong gives \[1, 3\] for one image - logits \[1, 10\] are needed"),
        ("own_nets.Pair", r"own_nets\.Pair gives tuple for one image - logits"),
        ("own_nets.Broken", r"own_nets\.Broken cannot take images \[B, 3, 32, 32\] \(RuntimeError: "),
        (
            "own_nets.function",
            r"_target_=own_nets\.function is no Module of .* - it is no class: give one of yours that",
        ),
        ("own_nets.Missing", r"own_nets\.Missing cannot be imported \(AttributeError: "),
        ("own_mistake.Net", r"own_mistake\.Net cannot be imported \(ModuleNotFoundError: No module named 'no_such_pac"),
        ("nowhere.Net", r"nowhere\.Net cannot be imported \(ModuleNotFoundError: "),
        ("torch.nn.Identity", "is no Module of"),
        ("own_nets.Forgetful", r"own_nets\.Forgetful keeps no arguments for its checkpoints - call self\.save_hyperp"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_model({"_target_": target}, ["own_nets", "own_mistake", "nowhere"], classes=[*"abcdefghij"])
    assert "\n" not in str(error.value)
    assert " - " in str(error.value)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"own_nets\.Net: got an unexpected keyword argument 'widht' - correct it"):
        build_own("Net", widht=4)


@pytest.mark.parametrize("key", ["seed=3", "image_size=64", "gradient_clip_val=0.5", "num_classes=20"])
def test_what_every_network_is_given_is_no_key_of_its_own(compose: Compose, tmp_path: Path, key: str) -> None:
    own = ["model=own", "model._target_=own_nets.Patches", "trust=[own_nets]", f"+model.{key}"]
    name = key.split("=")[0]
    with pytest.raises(ConfigError, match=rf"model\.{key}: the run gives a network its {name} - leave it out"):
        training.train(compose(*own), tmp_path)


def test_its_augmented_and_uint8_batches_are_like_those_of_other_networks(compose: Compose, tmp_path: Path) -> None:
    own = ["model=own", "model._target_=own_nets.Net", "trust=[own_nets]", "augment=standard", "tta=mirror"]
    metrics = training.train(compose(*own, "trainer.precision=bf16-mixed"), tmp_path / "run")
    assert metrics["val/tta_acc"] is not None
    model = model_of(read(tmp_path / "run" / "best.ckpt"), ["own_nets"])
    answer: Tensor = model(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert answer.dtype == torch.float32
