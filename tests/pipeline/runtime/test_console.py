"""Log messages on stderr: their format, the levels of -v and -q, and the stream."""

import io
import json
import logging
import sys

import pytest

from repa_pipe import cli
from repa_pipe.pipeline import demo
from repa_pipe.pipeline.runtime.console import NOTICE, ROOT, echo, echo_json, log_to_stderr
from repa_pipe.pipeline.runtime.progress import progress

MODULE = "repa_pipe.pipeline.demo"


@pytest.fixture(autouse=True)
def package_logger():
    """The package's logger, restored afterwards: the handler and the level are process-wide."""
    logger = logging.getLogger(ROOT)
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def log_everything(*_):
    logger = logging.getLogger(MODULE)
    logger.debug("cache hit")
    logger.info("10 shards to encode")
    logger.warning("a shard is late")
    logger.error("a shard failed")


@pytest.fixture
def stderr_of(monkeypatch, capsys):
    """Return the lines on stderr of a command that logs a message of each level."""
    monkeypatch.setattr(demo, "run", log_everything)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["repa-pipe", "demo", *flags])
        cli.main()
        return capsys.readouterr().err.splitlines()

    return run


def test_by_default_information_is_plain_and_warnings_have_a_prefix(stderr_of):
    assert stderr_of() == ["10 shards to encode", "warning: a shard is late", "error: a shard failed"]


def test_quiet_shows_only_warnings_and_errors(stderr_of):
    assert stderr_of("-q") == stderr_of("--quiet") == ["warning: a shard is late", "error: a shard failed"]


def test_quiet_hides_progress(capsys):
    for level, lines in ((logging.INFO, 1), (logging.WARNING, 0)):
        log_to_stderr(level)
        with progress("encode", 4, "images") as bar:
            bar.update(4)
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_verbose_shows_debug_messages_and_the_names_of_loggers(stderr_of):
    assert stderr_of("-v") == stderr_of("--verbose")
    assert stderr_of("-v") == [
        f"{MODULE}: cache hit",
        f"{MODULE}: 10 shards to encode",
        f"warning: {MODULE}: a shard is late",
        f"error: {MODULE}: a shard failed",
    ]


def test_a_level_does_not_outlast_its_command(stderr_of):
    assert len(stderr_of("-q")) == 2
    assert len(stderr_of()) == 3


def test_messages_go_to_the_current_stderr(monkeypatch):
    log_to_stderr()
    replaced = io.StringIO()
    monkeypatch.setattr(sys, "stderr", replaced)
    log_everything()
    assert replaced.getvalue().startswith("10 shards to encode\n")


def test_messages_appear_once(package_logger, capsys):
    log_to_stderr()
    log_to_stderr()
    log_everything()
    assert capsys.readouterr().err.count("10 shards to encode") == 1


def test_messages_of_other_packages_are_not_shown(capsys):
    log_to_stderr()
    logging.getLogger("other").warning("not ours")
    assert capsys.readouterr().err == ""


def test_of_several_ranks_the_first_shows_notices_and_the_others_are_named_in_warnings(capsys, monkeypatch):
    logger = logging.getLogger(MODULE)
    monkeypatch.setenv("WORLD_SIZE", "4")
    log_to_stderr()
    shown = {}
    for rank in ("0", "3"):
        monkeypatch.setenv("RANK", rank)
        logger.warning("bf16 is slow", extra=NOTICE)
        log_everything()
        shown[rank] = capsys.readouterr().err.splitlines()
    notices = ["warning: bf16 is slow", "10 shards to encode"]
    assert shown["0"] == [*notices, "warning: a shard is late", "error: a shard failed"]
    assert shown["3"] == ["warning: rank 3: a shard is late", "error: rank 3: a shard failed"]


HOSTILE = "\x1b[2J\r\u202e\udcff\x7f"
VISIBLE = r"\x1b[2J\r\u202e\xff\x7f"


def test_special_characters_in_messages_are_escaped(capsys):
    log_to_stderr()
    logging.getLogger(MODULE).warning("%s\nerror: not ours", HOSTILE)
    assert capsys.readouterr().err == rf"warning: {VISIBLE}\nerror: not ours" + "\n"


def test_special_characters_in_the_traceback_of_a_message_are_escaped(capsys):
    log_to_stderr()
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger(MODULE).exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["error: failed", "Traceback (most recent call last):"]
    assert lines[-1] == f"ValueError: {VISIBLE}"


def test_messages_and_results_in_json_are_escaped_as_json(capsys):
    log_to_stderr(log_format="json")
    logging.getLogger(MODULE).info(HOSTILE)
    echo_json({"name": HOSTILE})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"name": HOSTILE}
    assert json.loads(err)["message"] == HOSTILE
    assert (out + err).replace("\n", "").isprintable()


def test_special_characters_in_results_and_progress_are_escaped(capsys):
    echo(HOSTILE)
    with progress(HOSTILE, 1, "images") as bar:
        bar.note(HOSTILE)
        bar.update()
    out, err = capsys.readouterr()
    assert out == VISIBLE + "\n"
    assert err.startswith(f"{VISIBLE}: 1 of 1 images, ")
    assert err.endswith(f", {VISIBLE}\n")
