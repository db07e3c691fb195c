"""What is written for Hydra, which reads it again."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from litcifar.keys import assignment

QUOTES = ["it's", '"', "a\\b", "a\\'b", "end\\"]
TEXTS = ["a/b.ckpt", "a b", "lr=0.1", "größe", "set (2)", *QUOTES, "1,2", "[x]", "{x: 1}", "~", "#", "a:b", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_an_assignment_is_read_as_the_text_that_was_written(text: str) -> None:
    override = OverridesParser.create().parse_override(assignment("ckpt", text))
    assert (override.key_or_group, override.value()) == ("ckpt", text)
    assert not override.is_sweep_override()


def test_what_needs_no_quotes_has_none() -> None:
    assert assignment("data.root", "/data/cifar-10_v1.0") == "data.root=/data/cifar-10_v1.0"
    assert assignment("data.verify", False) == "data.verify=False"
