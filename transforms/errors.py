"""How a command may end before it is done."""


class UserError(Exception):
    """A mistake that the user can mend. Its text says what was got, what was expected and what to do.

    The command line prints it on one line and ends with exit code 2; nothing is left half-written.
    """


class TemplateWritten(Exception):
    """A Dataflow template was built instead of a run; there is nothing more to do."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line: its first line of text, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
