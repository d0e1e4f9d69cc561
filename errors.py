"""The errors that users meet: one small tree, each also the builtin that it is.

A message states what was found, where, what was expected, and what to do. The command line prints it as one line and
exits with code 2.
"""

_LONGEST_LINE = 300  # an exception may quote what it read


def first_line(error: BaseException) -> str:
    """Return the first line of another library's exception, at most 300 characters, or its type without a message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"


class RepaPipeError(Exception):
    """Base class: anything that the user can fix."""


class ConfigError(RepaPipeError, ValueError):
    """A value of an option, or a combination of options, that cannot work."""


class SourceError(RepaPipeError, ValueError):
    """Images that cannot be found or listed."""


class BadImageError(RepaPipeError, ValueError):
    """One image that cannot be decoded; the message is the reason recorded in the quarantine."""


class StoreError(RepaPipeError, RuntimeError):
    """A store that is missing, incomplete, damaged, or made from something other than what was requested."""


class SampleIndexError(RepaPipeError, IndexError):
    """Indices that are malformed, or refer to samples that do not exist."""


class RemoteError(StoreError):
    """A store behind a URL whose server cannot be reached or refuses access; it may recover."""


class WeightsError(RepaPipeError, RuntimeError):
    """A weights file that is unavailable, or does not fit the model that it was given for."""


class DamagedWeightsError(WeightsError):
    """A weights file whose bytes have changed, or of which a part is missing."""


class NonFiniteError(RepaPipeError, ArithmeticError):
    """Latents or images that are NaN or infinite."""


class CheckpointError(RepaPipeError, RuntimeError):
    """A training checkpoint that cannot be read, or belongs to another configuration."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes have changed, or of which a part is missing."""


class BusyError(RepaPipeError, RuntimeError):
    """Files that another command is writing."""


class ActorError(RepaPipeError, RuntimeError):
    """Ray actors that fail again and again."""


class RankError(RepaPipeError, RuntimeError):
    """Another rank that has failed, or does not answer."""
