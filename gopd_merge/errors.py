"""What can go wrong, each with the exit code that the command line gives it."""

from collections.abc import Sequence


def printable(line: str) -> str:
    """The text on one line: names out of files end up in messages, and nothing in them may steer a terminal or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class GopdError(Exception):
    """A failure that has a one-line explanation: what was given, what was found, what to do."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(map(printable, lines))
        super().__init__("\n".join(self.lines))


class InputError(GopdError, ValueError):
    """An option or an input file that is refused before any work is done."""

    exit_code = 2


class Refused(InputError):
    """An input with one or more findings: one line for one, else a heading and a line for each."""

    SHOWN = 8  # findings; there can be as many as tensors

    def __init__(self, path: object, findings: Sequence[tuple[str, str]]) -> None:
        self.findings = tuple(findings)
        if len(findings) == 1:
            ((problem, remedy),) = findings
            super().__init__(f"{path}: {problem}; {remedy}")
            return
        shown = findings[: self.SHOWN]
        width = max(len(printable(problem)) for problem, _ in shown)
        lines = [f"{path}: {len(findings)} problems", *(f"  {printable(problem).ljust(width)}  {remedy}" for problem, remedy in shown)]
        if len(findings) > len(shown):
            lines.append(f"  and {len(findings) - len(shown)} more")
        super().__init__(*lines)


class NotEstimatedError(GopdError):
    """A model whose memory cannot be found without loading it."""


class VerificationError(GopdError):
    """A result that did not pass its own check and was therefore not published as complete."""


class Interrupted(BaseException):
    """The run was asked to stop by a signal. No error, so that nothing on the way takes it for one and goes on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(printable(message))
        self.exit_code = 128 + signal_number


class ProcessLost(GopdError):
    """Another process of the run has ended, or does not answer."""


class Unspoken(GopdError):
    """What another process of the run says: nothing is left to be said here."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code
