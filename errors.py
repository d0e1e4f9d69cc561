"""The errors that users meet: one small tree, each also the builtin that it is.

A message states what was found, where, what was expected, and what to do. The command line prints it as one
line and exits with code 2.
"""


def first_line(error: BaseException) -> str:
    """What somebody else's exception says, for a message of ours; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RepaPipeError(Exception):
    """Anything that the user can mend."""


class ConfigError(RepaPipeError, ValueError):
    """An option's value, or a combination of options, that cannot work."""


class SourceError(RepaPipeError, ValueError):
    """Images that cannot be found or listed."""


class BadImageError(RepaPipeError, ValueError):
    """One image that cannot be decoded; the message is the reason that the quarantine lists."""


class StoreError(RepaPipeError, RuntimeError):
    """A store that is missing, incomplete, damaged, or made from something else than asked for."""


class RemoteError(StoreError):
    """A store behind a URL whose server cannot be reached, or refuses; it may be well again in a while."""


class WeightsError(RepaPipeError, RuntimeError):
    """A weights file that cannot be had, or does not fit the model that it was named for."""


class CheckpointError(RepaPipeError, RuntimeError):
    """A training checkpoint that cannot be read, or belongs to another configuration."""
