"""What can go wrong for a user: each error is one line and has its exit code."""


class UserError(Exception):
    """An error whose cause the user can remove. The message reads `what - what to do`, on one line."""

    exit_code = 1


class ConfigError(UserError):
    """A key, a value or a combination of them that cannot be run."""

    exit_code = 2


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


class Interrupted(UserError):
    """The run was told to stop, by Ctrl-C (SIGINT) or SIGTERM; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
