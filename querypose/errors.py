"""The base of all errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """What a user gave cannot be used: the message says what, where, and the remedy, and needs no traceback.

    Every tool prints it as one line and exits with code 2 (`querypose.engine.report_user_errors`). Derive your own
    from it, and from the built-in exception that callers may expect.

    Attributes:
        met_by_all: whether every process of a run meets it, so that one of a machine reports it.
    """

    met_by_all = True


class RemediableError(UserError):
    """A user error that keeps apart what is wrong and what to do about it.

    torch passes an error of a loader process on with its message alone, which then is `what`.

    Attributes:
        what: names the file and the id, and what is wrong.
        remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}." if self.remedy else self.what
