"""What all measuring commands do alike: their numbers' bounds, and an end that leaves nothing."""

import argparse

from tidy import directory, run

__all__ = ["directory", "rounds", "run", "seconds"]


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
