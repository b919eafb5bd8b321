"""An end that leaves nothing behind, for commands that start processes and make namespaces."""

import contextlib
import pathlib
import shutil
import signal
import tempfile

import host
import netns

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked us to end."""


def _on_signal(number, _frame):
    # Once is enough: the clean-up that follows is not to be interrupted.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def run(function, *arguments):
    """Calls the function; returns the exit code, also of an end by a signal."""
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    try:
        function(*arguments)
    except Interrupted as interrupted:
        return 128 + interrupted.args[0]
    return 0


@contextlib.contextmanager
def directory(prefix):
    """A directory for sockets and logs. At its end all children are ended and our namespaces are
    gone; the logs of a failure are kept."""
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
        netns.remove_leftovers()
        if keep:
            host.say(f"the logs are in {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)
        host.say("everything is cleaned up")
