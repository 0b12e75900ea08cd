"""The one error that a user can cause and mend."""


class UserError(ValueError):
    """Bad input: one line that says what is wrong, what was expected and what to do."""
