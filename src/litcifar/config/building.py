"""How a `_target_` becomes an object: of trusted packages, and of the class that belongs there."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from litcifar.errors import ConfigError

TRUSTED = ("litcifar", "torch.optim", "lightning.pytorch.loggers")
Built = TypeVar("Built")


def trusting(target: str) -> str:
    """The advice to name a class's package."""
    return f"trust=[{target.partition('.')[0]}] if you know what is in it"


def within(target: str, packages: Sequence[str]) -> bool:
    """Whether a class is one of these packages'."""
    return target.startswith(tuple(f"{package}." for package in packages))


def class_of(target: str, base: type[Built], trust: Sequence[str] = ()) -> type[Built]:
    """The class of that name, which must be a `base` and within TRUSTED or `trust`, the user's own; ConfigError.

    A `_target_` may come from a stranger's checkpoint, where it is code to run: hence the short list of trusted
    packages, and the check that it names a subclass of what belongs there. A user's own lie in the working folder too.
    """
    module, _, name = target.rpartition(".")
    found = None
    if within(target, TRUSTED):
        with contextlib.suppress(ImportError, AttributeError):
            found = getattr(importlib.import_module(module), name)
    elif within(target, trust):
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever a user's file raises when it is imported
            text = " ".join(str(error).split())
            raise ConfigError(f"{target} cannot be imported ({type(error).__name__}: {text}) - correct it") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        packages = (*TRUSTED, *trust)
        if found is not None and not isinstance(found, type):
            advice = "it is no class: give one of yours that calls it"
        elif within(target, packages):
            advice = "correct its name"
        else:
            advice = f"correct its name, or name its package: {trusting(target)}"
        known = ", ".join(f"{package}.*" for package in packages)
        raise ConfigError(f"_target_={target} is no {base.__name__} of {known} - {advice}")
    return found


def build(spec: Mapping[str, Any], base: type[Built], *args: Any, trust: Sequence[str] = (), **extra: Any) -> Built:
    """An object of the class that `spec["_target_"]` names (see `class_of`), from the other items of `spec`."""
    options = dict(spec)
    path = str(options.pop("_target_"))
    target = class_of(path, base, trust)
    try:
        parameters = inspect.signature(target).bind(*args, **options, **extra).signature.parameters
        numbers = [name for name, of in parameters.items() if of.annotation in ("int", "float", int, float)]
        for key in numbers:
            if isinstance(options.get(key), str):  # which may be noticed only epochs later
                raise ValueError(f"{key}={options[key]} should be a number")
        return target(*args, **options, **extra)
    except (TypeError, ValueError, ArithmeticError, LookupError, ImportError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{path}: {text}{'' if ' - ' in text else ' - correct it'}") from error
