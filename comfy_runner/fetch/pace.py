"""How many connections at once are worth having."""

import os
import time

FEW = 4
"""Connections at first: where a host is fast, more only take the interpreter from each other."""
LOOK = 0.03
"""Seconds between two looks, at least; once a second there is one in any case."""
ENOUGH = 1024**2
"""Bytes for each connection, on average, before a look tells anything."""
GAIN = 1.1
"""How much faster all must be together for a further step."""
BUSY = 1.2
"""Processors kept busy, of two or more, above which more connections do not help."""


class Pace:
    """Doubles the connections as long as that makes the whole faster and processors are idle."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = min(FEW, most)
        """Connections that there should be."""
        self._busy = BUSY * min(os.cpu_count() or 1, 2) / 2
        self._rate = 0.0
        self._begin(0)

    def more(self, came: int, *, waiting: bool) -> int:
        """How many connections to add, when so many bytes have come through all of them so far.

        `waiting` tells whether there would be something to do for them.
        """
        seconds = time.monotonic() - self._since
        count = came - self._came
        if self.now >= self.most or seconds < LOOK or (count < ENOUGH * self.now and seconds < 1):
            return 0
        rate = count / seconds
        busy = (time.process_time() - self._used) / seconds
        self._begin(came)
        if not waiting or not count or busy > self._busy or rate < self._rate * GAIN:
            return 0
        self._rate = rate
        added = min(self.now, self.most - self.now)
        self.now += added
        return added

    def _begin(self, came: int) -> None:
        self._came = came
        self._since = time.monotonic()
        self._used = time.process_time()
