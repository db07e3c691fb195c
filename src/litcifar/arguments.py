"""What is written on the command line: the order that Hydra can read it in, and what to write instead of a mistake."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from litcifar.errors import ConfigError
from litcifar.keys import closest, compose, conf_dir, flat, quoted, suggestion
from litcifar.run_folder import has_begun


def resume_in_place(arguments: list[str]) -> list[str]:
    """With `resume=...`, the run goes on in the folder of its checkpoint; the `.hydra` of a run stays as it was.

    Raises ConfigError where another folder was asked for, or a sweep.
    """
    kept: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "hydra.run.dir" and has_begun(Path(value.strip("'\""))):
            kept = ["hydra.output_subdir=null"]
        if key == "resume" and not {"-m", "--multirun"}.isdisjoint(arguments):
            raise ConfigError(f"{argument}: a resumed run goes on in its own folder - leave out -m")
        path = os.path.expanduser(value.strip("'\""))
        if key == "resume" and os.path.exists(path):  # which, unlike Path's, is False for what no file can be called
            folder = path if os.path.isdir(path) else os.path.dirname(path)
            if any(a.startswith("hydra.run.dir=") for a in arguments):
                raise ConfigError("hydra.run.dir: a resumed run goes on in its own folder - leave it out")
            others = [a for a in arguments if a != argument]
            return [
                *others,
                f"resume={quoted(path)}",
                f"hydra.run.dir={quoted(folder or '.')}",
                "hydra.output_subdir=null",
            ]
    return [*arguments, *kept]


def options_first(arguments: list[str], name: str, bare: str | None) -> list[str]:
    """The arguments in an order that argparse understands; ConfigError for an option that Hydra does not have."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} - litcifar-{name} --help shows how it is written")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    known, unknown = parser.parse_known_intermixed_args(arguments)
    for option in unknown:
        if option.startswith("-"):
            word, _, value = option.lstrip("-").replace("-", "_").partition("=")
            key = closest(word, _known(name))
            after = arguments[arguments.index(option) + 1 :]
            value = value or (after[0] if after and "=" not in after[0] and not after[0].startswith("-") else "...")
            advice = f"write {key}={value}" if key else "keys are written without dashes: key=value"
            raise ConfigError(f"unknown option '{option}' - {advice}")
    for argument in arguments:
        if argument.startswith("="):
            raise ConfigError(f"'{argument}' has no key - write key=value")
    values = [argument for argument in known.overrides if "=" not in argument]
    if bare and values:
        if any(argument.startswith(f"{bare}=") for argument in arguments):
            raise ConfigError(f"{bare}=... beside '{values[0]}': the one would be lost - write all of them in one way")
        arguments = [argument for argument in arguments if argument not in values]
        arguments.append(f"{bare}=[{','.join(map(quoted, values))}]")
    return sorted(arguments, key=lambda argument: "=" in argument and not argument.startswith("-"))


def composition_error(error: Exception, name: str) -> str:
    """Hydra's and OmegaConf's complaints in one line, and what to write instead."""
    text = one_line(error)
    if isinstance(error, OverrideParseException):
        key, is_pair, value = error.override.partition("=")
        quotes = f"quote the value: \"{key}='{value}'\""
        advice = ("close the bracket" if value[:1] in ("[", "{") else quotes) if is_pair else "write key=value"
        return f"'{error.override}' cannot be read - {advice}"
    if found := re.search(r"Could not find '(\S+)/(\S+)' Available options in '\S+': (.*)", text):
        return f"unknown {found[1]}={found[2]} - {suggestion(found[2], found[3].split())}"
    if found := re.search(r"Could not load 'hydra/launcher/submitit_(\w+)'", text):
        return f"hydra/launcher={found[1]} needs submitit - pip install 'litcifar[slurm]'"
    if "Could not override '" in text:
        key = text.split("'")[1]
        files = {str(file.relative_to(conf_dir()).with_suffix("")) for file in conf_dir().rglob("*.yaml")}
        choices = [a for a in sys.argv[1:] if a.replace("=", "/") in files]
        known = _known(name, choices)
        more = ""
        if closest(key, known) is None:  # then not all of them: those beside it
            parent = key.rpartition(".")[0]
            known = {k for k in known if k.rpartition(".")[0] == parent} or {k for k in known if "." not in k}
            if key.startswith(("optim.", "scheduler.")) or f"{key.partition('.')[0]}=own" in choices:
                more = f"; an argument of a class beyond these is +{key}=..."
        return f"unknown key '{key}' - {suggestion(key, known)}{more}"
    return f"{text} - litcifar-{name} --help lists what there is"


def _known(name: str, choices: Sequence[str] = ()) -> set[str]:
    """The keys and the groups of a program's configuration, after some groups' choices."""
    defaults = OmegaConf.load(conf_dir() / f"{name}.yaml").defaults
    groups = {str(key) for item in defaults if isinstance(item, DictConfig) for key in item} & set(
        os.listdir(conf_dir())
    )
    return groups | flat(compose(name, *(choice for choice in choices if choice.split("=")[0] in groups))).keys()


def one_line(error: Exception) -> str:
    """The message without the places that Hydra searched, and without the object that OmegaConf was looking at."""
    return " ".join(re.split(r"Config search path|full_key: ", str(error))[0].split())
