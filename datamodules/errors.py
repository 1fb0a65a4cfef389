"""The one exception for bad input.

Every user mistake (a missing split, a truncated photograph, a mistyped option) is raised as `InputError` with a message that
names the file or option, the key, and what to do. The command line prints that message alone; other exceptions are bugs and
keep their traceback.
"""


class InputError(Exception):
    """Bad input by the user or on disk; `str(error)` is complete advice: what, where, and the remedy."""
