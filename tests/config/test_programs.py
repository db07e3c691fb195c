"""What a program is given fits together."""

import pytest

from litcifar.config import CompareConfig, ExportConfig, check, compose
from litcifar.config.values import Node
from litcifar.errors import ConfigError


@pytest.mark.parametrize(
    ("program", "overrides", "message"),
    [
        ("export", ("ckpt=x", "output=net.pt2"), r"output=net\.pt2 is no name for format=onnx - let it end in \.onnx"),
        ("export", ("ckpt=x", "format=pt2", "output=net.onnx"), r"output=net\.onnx is no name for format=pt2"),
        ("compare", ("csv=board.html",), r"csv=board\.html - its name has to end in \.csv"),
    ],
)
def test_a_file_is_named_by_what_is_written(program: str, overrides: tuple[str, ...], message: str) -> None:
    schemas: dict[str, type[Node]] = {"export": ExportConfig, "compare": CompareConfig}
    with pytest.raises(ConfigError, match=message):
        check(compose(program, *overrides), schemas[program])


def test_a_home_folder_is_found_in_each_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = check(compose("compare", "folders=['~/outputs',runs]", "csv='~/board.csv'"), CompareConfig)
    assert (config.folders, config.csv) == (["/home/somebody/outputs", "runs"], "/home/somebody/board.csv")
