"""Estimate the speed of work and the time that is left."""

import math

from repsim.runtime.files import format_duration


class Pace:
    """Speed of work and the time that is left, from reports at given times; it reads no clock.

    The speed is a ratio of two sums, of the work and of the time since the first report, in which earlier reports
    weigh less and less. A prediction counts as if a tenth of the work had been done at the predicted speed; so it
    stands alone at first, and measurements soon outweigh it. What is done at the first report was done before.

    >>> pace = Pace()
    >>> pace.report(0.0, 0, 100), pace.rate
    (None, None)
    >>> pace.report(5.0, 10, 100), pace.rate, pace.left(5.0), pace.left(8.0)
    (None, 2.0, 45.0, 42.0)
    """

    MEMORY = 60.0
    """Seconds after which a report has lost 63 % of its weight; half of the time so far, if that is longer."""
    TRUST = 0.1
    """Share of the work that a prediction counts for."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._expected: float | None = None
        self._start: float | None = None
        self._changed = 0.0
        self._work = self._time = 0.0
        self._measured = False

    def expect(self, seconds: float | None) -> None:
        """Forget earlier reports, and predict how long the work takes that is left at the next report."""
        self._expected, self._start = seconds, None

    def report(self, now: float, done: int, total: int) -> None:
        """Report at the time ``now``, in seconds, how much is done, and of how much."""
        before, self.done, self.total = self.done, done, total
        if self._start is None or done < before:
            self._start = self._changed = now
            self._work = self._time = 0.0
            self._measured = False
            if self._expected is not None and done < total:
                self._work, self._time = self.TRUST * (total - done), self.TRUST * self._expected
                self._expected = None
        elif done > before:  # a report without work is a sign of life, and changes no speed
            kept = math.exp((self._changed - now) / max(self.MEMORY, (now - self._start) / 2))
            self._work = kept * self._work + done - before
            self._time = kept * self._time + now - self._changed
            self._changed, self._measured = now, True

    @property
    def rate(self) -> float | None:
        """Work per second; None until it has been measured for half a second."""
        return self._work / self._time if self._measured and self._time >= 0.5 else None

    def left(self, now: float) -> float | None:
        """Return the seconds that the rest takes from ``now`` on; None while the speed is not known."""
        if not self._work or not self._time:
            return None
        since = now - self._changed
        left = (self.total - self.done) * self._time / self._work - since
        # if nothing was reported for longer than all of the rest should take, the work is slower than it was
        return left if left > 0 else (self.total - self.done) * (self._time + since) / self._work

    def text(self, now: float, unit: str = "") -> str:
        """Return what is done, the rate, and the time left, as far as they are known.

        Parameters
        ----------
        now
            Time in seconds.
        unit
            What is counted, such as ``images``; ``%`` for percent of predicted work.

        >>> pace = Pace()
        >>> pace.report(0.0, 0, 5000)
        >>> pace.text(0.0, "images")
        '0 of 5,000'
        >>> pace.report(10.0, 1200, 5000)
        >>> pace.text(10.0, "images")
        '1,200 of 5,000, 120 images/s, 32 s left'
        """
        parts = [f"{self.done} %" if unit == "%" else f"{self.done:,} of {self.total:,}"]
        if self.rate is not None and unit != "%":
            rate = f"{self.rate:,.{0 if self.rate >= 9.95 else 1}f} {unit}{'/s' if unit else 'a second'}"
            parts.append(rate if self.rate >= 0.95 else f"{format_duration(1 / self.rate)} each")
        left = self.left(now)
        if left is not None and left >= 1:
            parts.append(f"{format_duration(left)} left")
        return ", ".join(parts)
