"""How a command may end before it is done."""


class UserError(Exception):
    """A mistake that the user can mend. Its text says what was got, what was expected and what to do.

    The command line prints it on one line and ends with exit code 2; nothing is left half-written.
    """


class TemplateWritten(Exception):
    """A Dataflow template was built instead of a run; there is nothing more to do."""
