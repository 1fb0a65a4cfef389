"""The one exception for bad input.

Every user mistake (a missing split, a truncated photograph, a mistyped option) is raised as `InputError` with a message that
names the file or option, the key, and what to do. The command line prints that message alone; other exceptions are bugs and
keep their traceback.
"""

from collections.abc import Iterable, Iterator

SHOWN = 4  # how many keys an error message lists before "and N more"


class InputError(Exception):
    """Bad input by the user or on disk; `str(error)` is complete advice: what, where, and the remedy.

    Control characters and halves of characters, which names and values from files may hold, are written as escapes: they can
    neither act on a terminal nor fail to be printed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """A text whose characters can all be printed, and line ends."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n " else ascii(sign)[1:-1] for sign in text)


def line_of(text: object) -> str:
    """`printable` on one line: of the name of a file, which may hold line ends."""
    return printable(str(text)).replace("\n", "\\n")


def shown(value: object, most: int = 80) -> str:
    """A value from a file, for an error message: on one line and not longer than that."""
    text = repr(value) if isinstance(value, str) else " ".join(repr(value).split())  # a tensor's has several lines
    return text if len(text) <= most else f"{text[: most - 4]}... ({len(text):,} characters)"


class AgreedError(InputError):
    """Every process of a run raises it alike, at the same place: one of them says it."""


def some(names: Iterable[str]) -> str:
    """The first few names and how many more there are, for an error message."""
    ordered = list(names)
    text = ", ".join(ordered[:SHOWN])
    return text if len(ordered) <= SHOWN else f"{text} and {len(ordered) - SHOWN} more"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came from: torch.save, for one, hides the full disk behind an error of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def find_input_error(error: BaseException | None) -> InputError | None:
    """The InputError in a chain of exceptions: jsonargparse wraps what it catches."""
    return next((each for each in chain(error) if isinstance(each, InputError)), None)
