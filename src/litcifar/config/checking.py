"""A configuration against its schema: each mistake in the words of the command line."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from litcifar.config.values import Node
from litcifar.errors import ConfigError
from litcifar.keys import flat, suggestion

Config = TypeVar("Config", bound=Node)


def check(config: Mapping[str, Any], schema: type[Config], complete: bool = True) -> Config:
    """The checked configuration; ConfigError names each key that is unknown, missing, of a wrong type or out of range.

    complete: False where keys that have a default may be missing, as in a checkpoint that is older than they are.
    """
    given = _given(config)
    problems = [_missing(key) for key, value in flat(config).items() if value == "???"]
    try:
        checked = schema.model_validate(given)
        problems += [_missing(key) for key in _left_out(checked)] if complete else []
    except ValidationError as error:
        problems += [_problem(dict(detail), given) for detail in error.errors(include_url=False)]
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    return checked


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that are `???`: Hydra's mark of those that the user has to give."""
    values = {key: _given(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    return {key: value for key, value in values.items() if value != "???"}


def _missing(key: str) -> str:
    return f"'{key}' is missing - give it: {key}=..."


def _left_out(node: Node, prefix: str = "") -> list[str]:
    """The keys that took their default, but for those of a node that takes any key."""
    if node.model_config["extra"] == "allow":
        return []
    given = node.model_fields_set
    missing = [f"{prefix}{name}" for name in type(node).model_fields if name not in given]
    inside = [_left_out(value, f"{prefix}{name}.") for name, value in node if isinstance(value, Node)]
    return [*missing, *(key for keys in inside for key in keys)]


def plain(config: Node) -> dict[str, Any]:
    """The configuration as dicts, lists, strings and numbers, which a checkpoint may hold."""
    return config.model_dump(by_alias=True)


def _problem(detail: dict[str, Any], config: Mapping[str, Any]) -> str:
    """One of pydantic's complaints, in the words of the command line."""
    # A union's or a discriminator's own tags stand in `loc` too; what is no key of the configuration is left out.
    keys: list[str] = []
    here: Any = config
    parent: Any = config
    for step in detail["loc"]:
        if isinstance(here, Mapping) and step in here:
            parent, here = here, here[step]
        elif isinstance(here, list) and isinstance(step, int):
            here = here[step]
        elif detail["type"] != "missing" or step != detail["loc"][-1]:
            continue
        keys.append(str(step))
    name = ".".join(keys)
    if detail["type"] == "missing":
        return _missing(name)
    if detail["type"] == "extra_forbidden":
        siblings = [".".join([*keys[:-1], key]) for key in parent if key != keys[-1]]
        return f"unknown key '{name}' - {suggestion(name, siblings)}"
    if detail["type"] == "union_tag_invalid":
        expected = str(detail.get("ctx", {}).get("expected_tags", ""))
        return f"{name}._target_={detail['ctx']['tag']} is not one of {expected} - choose one of them"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{name}={here} - {message[0].lower()}{message[1:]}" if name else message
