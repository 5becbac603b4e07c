"""A clock for tests of time limits, which therefore need not wait for one."""

import threading

ANTI_HANG = 60.0
"""Seconds after which a test that waits for an event fails: far more than a busy machine needs."""


class Clock:
    """Stands in for the module `time`: a second passes with every look, and each look is told.

    Attributes
    ----------
    looks : threading.Semaphore
        Released once per look.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = threading.Semaphore(0)

    def monotonic(self) -> float:
        """Return the seconds, as `time.monotonic` does."""
        self.now += 1.0
        self.looks.release()
        return self.now
