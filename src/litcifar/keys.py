"""The keys of the configuration: where they are written, and which of them a misspelt word meant.

Without pydantic, which the shell's completion has no time for.
"""

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PLAIN = re.compile(r"[A-Za-z0-9_./+-]+( [A-Za-z0-9_./+-]+)*")
OPEN = ("augment.resolution", "optim.groups")  # mappings whose keys are the user's choice


def conf_dir() -> Path:
    """The folder of the configuration files: inside the package when installed from a wheel, else beside `src`."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def compose(program: str, *overrides: str) -> dict[str, Any]:
    """The configuration of `litcifar-<program>` with these overrides, unchecked. Raises HydraException."""
    import hydra  # here because a checkpoint is read without it
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    with contextlib.ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():  # as it is inside a job
            stack.enter_context(hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"))
        composed = hydra.compose(program, opened(overrides))
    return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]


def opened(overrides: Iterable[str]) -> list[str]:
    """The overrides as Hydra takes them for `OPEN` mappings, which it would neither replace nor let grow.

    `optim.groups={...}` is then all there is, and `optim.groups.norm.lr=1` changes what there is or adds to it.
    """
    given: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in OPEN and value.startswith("{"):
            given += [f"{key}=null", f"++{override}"]  # with ++ because a sweep keeps one override of a key as written
        elif key.startswith(tuple(f"{mapping}." for mapping in OPEN)):
            given.append(f"++{override}")
        else:
            given.append(override)
    return given


def assignment(key: str, value: object) -> str:
    """The override that sets a key to this value, in quotes where Hydra would not read it as it is."""
    return f"{key}={value if PLAIN.fullmatch(str(value)) else quoted(str(value))}"


def quoted(text: str) -> str:
    """A text that Hydra reads as it is, whatever is in it."""
    from hydra.core.override_parser.types import Quote, QuotedString  # here as above

    return QuotedString(text, Quote.single).with_quotes()


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that this one resembles, as a whole or in what follows its last dot."""
    words = {part: whole for whole in sorted(known, reverse=True) for part in (whole.rpartition(".")[2], whole)}
    alike = {part: difflib.SequenceMatcher(None, word, part).ratio() for part in sorted(words)}
    best = max(alike, key=alike.__getitem__, default="")
    return words[best] if best and alike[best] >= 0.75 else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to do about an unknown word: the known one that it resembles, or all of them."""
    close = closest(word, known)
    return f"did you mean '{close}'?" if close else f"choose from {', '.join(sorted(known))}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1, "groups": {}}} as {"optim.lr": 1, "optim.groups": {}}."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return items
