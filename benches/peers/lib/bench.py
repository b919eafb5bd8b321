"""What all measuring commands do alike: their numbers' bounds, and an end that leaves nothing."""

import argparse
import contextlib
import pathlib
import shutil
import signal
import tempfile

import host

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked us to end."""


def _on_signal(number, _frame):
    # Once is enough: the clean-up that follows is not to be interrupted.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def run(measure, options):
    """Measures; returns the exit code, also of an end by a signal."""
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    try:
        measure(options)
    except Interrupted as interrupted:
        return 128 + interrupted.args[0]
    return 0


@contextlib.contextmanager
def directory(prefix):
    """A directory for sockets and logs. At its end all children are ended; the logs of a failure
    are kept."""
    path = pathlib.Path(tempfile.mkdtemp(prefix=prefix))
    keep = True
    try:
        yield path
        keep = False
    except Interrupted:
        keep = False
        raise
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        host.end_children()
        if keep:
            host.say(f"the logs are in {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)
        host.say("everything is cleaned up")


def rounds(text):
    """A number of rounds, as argparse wants it."""
    number = int(text)
    if not 1 <= number <= 1000:
        raise argparse.ArgumentTypeError("1 to 1000 is expected")
    return number


def seconds(text):
    """The length of a window, as argparse wants it."""
    number = float(text)
    if not 0.05 <= number <= 60:
        raise argparse.ArgumentTypeError("0.05 to 60 is expected")
    return number
