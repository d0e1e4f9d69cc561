"""A home folder for users that have none, as in some containers and batch jobs."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from .console import NOTICE

logger = logging.getLogger(__name__)


def ensure_home(stack: ExitStack) -> None:
    """Set $HOME to a temporary folder until the stack is closed, if the user has no home folder.

    This package and many libraries keep caches and settings there, and some fail when it is unknown.
    """
    try:
        Path.home()
    except RuntimeError:  # no $HOME, and no entry of the user in the system
        logger.warning("this user has no home folder, so nothing is cached for later commands: set HOME", extra=NOTICE)
        os.environ["HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="repa-pipe-home-"))
