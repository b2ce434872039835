"""What may be asked again, when and how often, and when an engine is not asked at all. Pure: the clock is an argument.

Sources: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ (full jitter), the retry budgets of
https://sre.google/sre-book/handling-overload/, and https://martinfowler.com/bliki/CircuitBreaker.html.
"""

from collections import deque

ATTEMPTS = 3  # of one request, the first included
_BASE, _CAP = 0.05, 2.0  # seconds


def delay(attempt: int, chance: float) -> float:
    """Seconds to wait before attempt number ``attempt`` (the first retry is 1): exponential, with full jitter.

    Args:
        chance: a random number in [0, 1).
    """
    return chance * min(_CAP, _BASE * 2.0 ** (attempt - 1))


class Budget:
    """Retries may add a fifth to the load, and a few more after a quiet time; beyond that, faults are passed on."""

    SHARE = 0.2
    RESERVE = 10.0

    def __init__(self) -> None:
        self._left = self.RESERVE

    def earn(self) -> None:
        """A request came."""
        self._left = min(self.RESERVE, self._left + self.SHARE)

    def spend(self) -> bool:
        """Whether one more retry may be made; if so, it counts."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Breaker:
    """Keeps requests from an engine that fails: opens on faults, and after a pause lets single requests probe it.

    Only the engine's faults count: refused or broken connections, answers of 5xx, silence. Not a caller's mistakes,
    nor callers who leave.
    """

    CONSECUTIVE = 5  # faults that open it
    WINDOW, RATE = 20, 0.5  # or this share of so many requests
    PAUSE, LONGEST = 2.0, 30.0  # seconds from opening to the first probe; doubled by each probe that fails

    def __init__(self) -> None:
        self._outcomes: deque[bool] = deque(maxlen=self.WINDOW)
        self._faults = 0
        self._pause = self.PAUSE
        self._opened: float | None = None
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether requests are kept away, but for probes."""
        return self._opened is not None

    def state(self, now: float) -> str:
        """``closed``, ``open``, or ``half_open`` when a probe is on its way, or may be sent."""
        if self._opened is None:
            return "closed"
        return "half_open" if self._probing or not self.wait(now) else "open"

    def wait(self, now: float) -> float:
        """Seconds until the next request may pass; 0 when it may now."""
        if self._opened is None:
            return 0.0
        if self._probing:
            return self._pause
        return max(0.0, self._opened + self._pause - now)

    def began(self) -> None:
        """A request was let through."""
        self._probing = self.open

    def left(self) -> None:
        """It ended without telling anything of the engine."""
        self._probing = False

    def succeeded(self) -> None:
        """The engine answered, if only with a refusal."""
        self._outcomes.append(True)
        self._faults = 0
        if self._opened is not None:
            self.reset()

    def failed(self, now: float) -> None:
        """The engine is at fault."""
        self._outcomes.append(False)
        self._faults += 1
        if self._opened is not None:
            if self._probing:
                self._opened, self._probing = now, False
                self._pause = min(self.LONGEST, self._pause * 2)
        elif self._faults >= self.CONSECUTIVE or self._mostly_faults():
            self._opened = now

    def reset(self) -> None:
        """As new: the engine was started again, or a probe went well."""
        self._outcomes.clear()
        self._faults = 0
        self._pause = self.PAUSE
        self._opened, self._probing = None, False

    def _mostly_faults(self) -> bool:
        faults = self._outcomes.count(False)
        return len(self._outcomes) == self.WINDOW and faults >= self.RATE * self.WINDOW
