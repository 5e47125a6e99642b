"""The user's mistakes, told apart from ours."""


class UserError(ValueError):
    """Something the user can mend; the message says what is wrong, where, and what to do. Shown without a traceback."""
