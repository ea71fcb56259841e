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
