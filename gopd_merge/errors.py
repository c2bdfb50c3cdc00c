"""What can go wrong, each with the exit code that the command line gives it."""


class GopdError(Exception):
    """A failure that has a one-line explanation: what was given, what was found, what to do."""

    exit_code = 1


class InputError(GopdError, ValueError):
    """An option or an input file that is refused before any work is done."""

    exit_code = 2


class VerificationError(GopdError):
    """A result that did not pass its own check and was therefore not published as complete."""


class Interrupted(GopdError):
    """The run was asked to stop by a signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
