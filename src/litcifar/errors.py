"""What can go wrong for a user: each error is one line and has its exit code."""

import importlib.util


class UserError(Exception):
    """An error whose cause the user can remove. The message reads `what - what to do`, on one line."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A key, a value or a combination of them that cannot be run."""

    exit_code = 2


class InUseError(ConfigError):
    """A run's folder that another process trains in."""


class DataError(UserError):
    """Images that are missing, damaged or not what they should be."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint or another input file that is missing, damaged or foreign."""

    exit_code = 4


class DivergedError(UserError):
    """A loss or a weight that is no longer finite."""

    exit_code = 5


class MachineError(UserError):
    """A machine that lacks what the run needs: a GPU, disk space, a writable folder."""

    exit_code = 6


class Pruned(Exception):
    """The search gives this run up (`litcifar.search.pruning`); no error."""


class Interrupted(BaseException):
    """The run was told to stop, by Ctrl-C (SIGINT) or SIGTERM; the exit code is 128 + the signal's number.

    No `Exception`: a signal may come amid code that catches those.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])


ONE_VALUE = "Expected more than 1 value per channel"  # torch's words, of batch norm

REASONS: tuple[tuple[str, type[UserError], str], ...] = (  # words of a library's error, what it is, what to do
    ("can't allocate memory", MachineError, "choose a smaller network, image size or data.batch_size"),
    ("out of memory", MachineError, "choose a smaller network, image size or data.batch_size"),
    ("DataLoader worker", MachineError, "set data.num_workers=0, or give /dev/shm more space"),
    (ONE_VALUE, ConfigError, "no batch may be one image: change data.batch_size"),
    ("modulo by zero", ConfigError, "scheduler.step_size and scheduler.T_max are at least 1"),
    ("Tried to step", ConfigError, "give the scheduler total_steps: total_steps"),
    ("does not have a deterministic implementation", ConfigError, "set trainer.deterministic=warn"),
    ("Deterministic behavior was enabled", ConfigError, "set CUBLAS_WORKSPACE_CONFIG=:4096:8 before the command"),
    ("no kernel image", MachineError, "this GPU is not one of this torch's: use trainer.accelerator=cpu"),
    ("without overflow", ConfigError, "a number is too large for float32: lower it"),
)


def require(what: str, *packages: str, extra: str) -> None:
    """MachineError where a package is missing that comes with one of litcifar's extras."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise MachineError(f"{what} needs {', '.join(packages)} - pip install 'litcifar[{extra}]'")


def is_of_storage(error: BaseException) -> bool:
    """Whether a search's study.db could not be read or written; named, not imported, as most runs need neither."""
    return type(error).__module__.partition(".")[0] in ("optuna", "sqlalchemy", "sqlite3")


def explained(error: BaseException) -> UserError:
    """What a user is told of an error: of one that is none of these, what machine or value is to blame, or a bug."""
    if isinstance(error, UserError):
        return error
    kind, text = type(error).__name__, " ".join(str(error).split())
    known = [(what, todo) for words, what, todo in REASONS if words in text]
    result: UserError
    if isinstance(error, FileNotFoundError):
        result = DataError(f"{text or kind} - put it there, or correct the path")
    elif isinstance(error, OSError):
        result = MachineError(f"{text or kind} - free disk space, or use a folder that can be written")
    elif is_of_storage(error):
        cause = " ".join(str(error.__cause__ or error).split())
        result = MachineError(f"study.db: {cause} - free disk space, or search in another hydra.sweep.dir")
    elif isinstance(error, MemoryError):
        result = MachineError("out of memory - choose a smaller network, image size or data.batch_size")
    elif known:
        result = known[0][0](f"{text} - {known[0][1]}")
    elif kind == "MisconfigurationException":  # Lightning's: not imported here, where it would take seconds
        result = ConfigError(f"{text} - change this in the configuration")
    else:
        result = UserError(
            f"{kind}: {text} - this is a bug, in litcifar or in code of yours; HYDRA_FULL_ERROR=1 shows where"
        )
    result.__cause__ = error
    return result
