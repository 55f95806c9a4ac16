"""The one exception for mistakes that a user can mend: scripts print it as a single line and exit with 2."""


class UserError(ValueError):
    """Says what was expected, what was found and what to do, in one line, naming the file where there is one."""
