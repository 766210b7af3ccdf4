"""The one error class for a user's mistake."""


class InputError(ValueError):
    """A value or a file that was given is not accepted; the message says what is.

    The commands print it as one line and leave with status 2. Every other exception but an
    ``OSError`` (a failed operation: disk, network; status 1) keeps its traceback.
    """


class Note(UserWarning):
    """Something that the user should know, such as files that were left out."""
