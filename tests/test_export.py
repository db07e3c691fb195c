"""Export: the file answers as the network does, without litcifar, for any number of images."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from litcifar import export as export_module
from litcifar import training
from litcifar.checkpoints import load
from litcifar.config import ExportConfig, TrainConfig, check, train_config
from litcifar.data import shapes
from litcifar.errors import ConfigError, MachineError, UserError
from litcifar.export import export
from litcifar.keys import compose

RECIPES = {
    "mlp": ("model=mlp", "model.hidden=[32]", "model.batch_norm=true", "model.mean=[.5,.4,.3]", "model.std=[.2,.3,.2]"),
    "cnn": ("model.widths=[4,8]", "model.norm=conv", "ema=0.8", "trainer.precision=bf16-mixed", "model.padding=valid"),
    "bf16": ("model=mlp", "model.hidden=[8]", "trainer.precision=bf16-true", "data.classes=[ship,cat,dog]"),
    "whitened": ("model.widths=[8]", "model.stem=whitened", "model.residual=true", "model.convs=2", "model.norm=conv"),
}


@pytest.fixture(scope="module", params=RECIPES)
def run(request: pytest.FixtureRequest, tiny_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    overrides = ["trainer.max_epochs=1", "data.val_size=50", "data.verify=false", "logger=none", "figures=false"]
    config = compose("train", f"data.root={tiny_cifar10}", *overrides, *RECIPES[request.param])
    training.train(check(config, TrainConfig), folder)
    return folder


@pytest.fixture(scope="module")
def plain_run(tiny_cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    overrides = ["model=mlp", "model.hidden=[]", "trainer.max_epochs=1", "data.val_size=50", "data.verify=false"]
    training.train(train_config(f"data.root={tiny_cifar10}", *overrides, "logger=none", "figures=false"), folder)
    return folder


def config(ckpt: Path, *overrides: str) -> ExportConfig:
    return check(compose("export", f"ckpt={ckpt}", *overrides), ExportConfig)


def expected(run: Path, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return load(run).model(torch.from_numpy(images)).softmax(1).numpy()


def test_onnx(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export(config(run, f"output={tmp_path}/net.onnx"))
    printed = capsys.readouterr().out
    assert "largest difference from PyTorch on 40 test images of cifar10: " in printed or "on 12 test" in printed
    session = onnxruntime.InferenceSession(path)
    (images_in,), (probabilities_out,) = session.get_inputs(), session.get_outputs()
    assert (images_in.name, images_in.type, images_in.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert (probabilities_out.name, probabilities_out.type) == ("probabilities", "tensor(float)")
    images, _ = shapes.draw(23, seed=7)
    for count in (1, 2, 3, 23):
        (answers,) = session.run(None, {"images": images[:count]})
        np.testing.assert_allclose(answers, expected(run, images[:count]), atol=1e-5)
        np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    model = load(run).model
    assert json.loads(metadata["classes"]) == model.classes
    assert json.loads(metadata["image_size"]) == 32
    onnx.checker.check_model(onnx.load(path), full_check=True)
    weights = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 not in weights


def test_pt2(run: Path, tmp_path: Path) -> None:
    path = export(config(run, "format=pt2", f"output={tmp_path}/net.pt2"))
    extra = {"metadata.json": ""}
    program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    images, _ = shapes.draw(23, seed=7)
    for count in (1, 2, 23):
        with torch.no_grad():
            answers = program(torch.from_numpy(images[:count])).numpy()
        np.testing.assert_allclose(answers, expected(run, images[:count]), atol=1e-5)
    assert json.loads(extra["metadata.json"])["classes"] == load(run).model.classes


def test_the_file_lies_beside_the_checkpoint_and_is_kept(plain_run: Path) -> None:
    path = export(config(plain_run, "format=pt2"))
    assert path == plain_run / "best.pt2"
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"best\.pt2' is there already - set overwrite=true"):
        export(config(plain_run, "format=pt2"))
    assert path.read_bytes() == before
    export(config(plain_run, "format=pt2", "overwrite=true"))


def test_without_its_data_a_network_is_checked_on_drawn_shapes(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("litcifar.data.cifar10_files.is_present", lambda root: False)
    export(config(plain_run, "format=pt2", f"output={tmp_path}/net.pt2"))
    assert "on 500 drawn shapes: " in capsys.readouterr().out


def test_too_few_test_images_give_way_to_drawn_shapes(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("test", 1)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / split / name / f"{number}.png")
    config = train_config("data=image_folder", f"data.root={tmp_path}", "model=mlp")
    assert export_module._images(config, 32)[1] == "drawn shapes"


def test_a_file_that_answers_otherwise_is_not_written(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_module.largest_difference
    monkeypatch.setattr(
        export_module,
        "largest_difference",
        lambda net, program, images: real(net, lambda x: program(x) + 0.001, images),
    )
    with pytest.raises(UserError, match=r"differ from PyTorch's by up to 1\.0e-03 on test images") as error:
        export(config(plain_run, "format=pt2", f"output={tmp_path}/net.pt2"))
    assert error.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_how_to_install_them(plain_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"onnx, onnxscript, onnxruntime - pip install 'litcifar\[export\]'"):
        export(config(plain_run))
