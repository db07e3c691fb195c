"""What a user is told of an error that is not litcifar's own."""

import pytest

from litcifar.errors import ConfigError, DataError, MachineError, UserError, explained


@pytest.mark.parametrize(
    ("error", "kind", "exit_code", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "x.npy"),
            DataError,
            3,
            "'x.npy' - put it there, or correct",
        ),
        (
            PermissionError(13, "Permission denied", "x.npy"),
            MachineError,
            6,
            "'x.npy' - free disk space, or use a folder",
        ),
        (OSError(28, "No space left on device"), MachineError, 6, "No space left on device - free disk space"),
        (MemoryError(), MachineError, 6, "out of memory - choose a smaller network"),
        (RuntimeError("CUDA out of memory. Tried"), MachineError, 6, "- choose a smaller network"),
        (
            RuntimeError("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but"),
            ConfigError,
            2,
            "- set trainer.deterministic=warn",
        ),
        (
            RuntimeError("Deterministic behavior was enabled with either"),
            ConfigError,
            2,
            "- set CUBLAS_WORKSPACE_CONFIG=:4096:8",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for"),
            MachineError,
            6,
            "use trainer.accelerator=cpu",
        ),
        (
            ZeroDivisionError("division\nby zero"),
            UserError,
            1,
            "ZeroDivisionError: division by zero - this is a bug, in",
        ),
    ],
)
def test_an_error_of_a_library_is_one_line_with_what_to_do(
    error: Exception, kind: type[UserError], exit_code: int, message: str
) -> None:
    told = explained(error)
    assert type(told) is kind
    assert told.exit_code == exit_code
    assert message in str(told)
    assert "\n" not in str(told)
    assert told.__cause__ is error
