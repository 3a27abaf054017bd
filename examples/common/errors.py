"""The one exception of the examples that is meant for the user's eyes."""


class UserError(Exception):
    """Something the user can put right; shown as one line, no traceback."""
