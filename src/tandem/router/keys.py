"""Who may call, and how often.

Keys are held as SHA-256 only, each with its caller's name. A key file has a line for each caller, ``NAME:KEY`` or
``NAME:sha256:HEX``; empty lines and those that begin with ``#`` do not count.
"""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from tandem.errors import ApiError, SettingsError
from tandem.router.exchange import Exchange
from tandem.settings import RouterSettings

_log = logging.getLogger("tandem.router")
_LOOK = 1.0  # seconds between two looks at whether the file has changed
_BYTES_A_TOKEN = 4
_MOMENT = 1e-6  # seconds that count as none
_OPEN = frozenset({"/livez", "/readyz", "/health", "/v1/health"})  # without a key; health then tells no reasons


class Keys:
    """All keys of one router.

    Raises:
        SettingsError: the key file cannot be read, or a line of it is wrong.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._file = settings.api_keys_file
        self._single = settings.api_key
        self._needed = settings.keys
        self._rates = _Rates(settings.requests_per_minute, settings.tokens_per_minute)
        self._stamp = (0, 0, 0)
        self._looked = time.monotonic()
        self._names: Mapping[bytes, str] = {}
        self._names = self._read()

    def admit(self, exchange: Exchange) -> None:
        """Let ``exchange`` pass and note its caller, before its body is read.

        Raises:
            ApiError: 401, it has no key, or none of ours.
        """
        if not self._needed:
            return
        self._look()
        given = exchange.header(b"authorization")
        scheme, _, key = given.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            if exchange.path in _OPEN:
                return
            raise ApiError(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                headers=_CHALLENGE,
            )
        digest = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        name = None
        for known, caller in self._names.items():  # all of them: the time must not tell which was near
            if hmac.compare_digest(known, digest):
                name = caller
        if name is None:
            raise ApiError(
                401, f"Incorrect API key provided: {_redacted(key)}.", code="invalid_api_key", headers=_CHALLENGE
            )
        exchange.caller = name

    def told(self, exchange: Exchange) -> bool:
        """Whether the caller may know why something is not well."""
        return not self._needed or bool(exchange.caller)

    def charge(self, exchange: Exchange) -> None:
        """Count a request against its caller's rates, and have the answer say what is left.

        Raises:
            ApiError: 429, there is nothing left.
        """
        self._rates.charge(exchange)

    def settle(self, exchange: Exchange) -> None:
        """Count the tokens that it took."""
        self._rates.settle(exchange)

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK:
            return
        self._looked = now
        try:
            if _stamp(self._file) != self._stamp:
                self._names = self._read()
                _log.info("the key file was read again: %d keys", len(self._names))
        except SettingsError as exc:  # a file that is being written, perhaps
            _log.error("the keys stay as they were: %s", exc)

    def _read(self) -> Mapping[bytes, str]:
        names: dict[bytes, str] = {}
        if self._single:
            names[bytes.fromhex(self._single.removeprefix("sha256:"))] = "default"
        if self._file is not None:
            self._stamp = _stamp(self._file)  # first: a file that changes meanwhile is read again
            names |= read(self._file)
        return names


def read(path: Path) -> dict[bytes, str]:
    """Of a key file, the names of callers by the SHA-256 of their keys.

    Raises:
        SettingsError: it cannot be read, or a line of it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"the key file {path} cannot be read: {exc}", "Mend api_keys_file") from exc
    return parse(text, str(path))


def parse(text: str, source: str) -> dict[bytes, str]:
    """Names of callers by the SHA-256 of their keys.

    Raises:
        SettingsError: a line is wrong, or there is none; says which, and never what it holds.
    """
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.partition(":")
        key = key.strip()
        if not colon or not re.fullmatch(r"[\w.@-]{1,64}", name) or not key:
            raise SettingsError(f"line {number} of {source} is not NAME:KEY or NAME:sha256:HEX", "Mend that line")
        if key.startswith("sha256:"):
            if not re.fullmatch(r"[0-9a-fA-F]{64}", key[7:].strip()):
                raise SettingsError(f"line {number} of {source} has no SHA-256 after sha256:", "Mend that line")
            digest = bytes.fromhex(key[7:].strip())
        else:
            digest = hashlib.sha256(key.encode()).digest()
        if digest in names:
            raise SettingsError(f"line {number} of {source} has the key of an earlier line again", "Give each its own")
        names[digest] = name
    if not names:
        raise SettingsError(f"{source} has no key, so nobody could call", "Add a line NAME:KEY")
    return names


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size


def _redacted(key: str) -> str:
    """As OpenAI shows a wrong key: its ends, if it is long enough that they tell little."""
    shown = re.sub(r"[^\x21-\x7e]", "?", key)
    return f"{shown[:4]}***{shown[-4:]}" if len(shown) >= 16 else "***"


@dataclass
class _Bucket:
    """So many a minute, and at most so many at once. Refills steadily."""

    limit: int
    left: float
    filled: float

    def refill(self, now: float) -> None:
        self.left = min(float(self.limit), self.left + (now - self.filled) * self.limit / 60)
        self.filled = now

    def wait(self, wanted: float) -> float:
        """Seconds until ``wanted`` are there."""
        return max(0.0, (wanted - self.left) * 60 / self.limit)


class _Rates:
    """Requests and tokens a minute, for each caller. As many buckets as there are keys."""

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self._limits = {kind: limit for kind, limit in (("requests", requests), ("tokens", tokens)) if limit}
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def charge(self, exchange: Exchange) -> None:
        if not self._limits:
            return
        buckets = {kind: self._bucket(exchange.caller, kind) for kind in self._limits}
        for kind, bucket in buckets.items():
            # Tokens are known afterwards: whoever has some left may ask, and pays then.
            if (wait := bucket.wait(1.0)) > _MOMENT:
                _describe(exchange, buckets)
                raise _too_many(kind, bucket, wait)
        if "requests" in buckets:
            buckets["requests"].left -= 1
        _describe(exchange, buckets)

    def settle(self, exchange: Exchange) -> None:
        if "tokens" in self._limits:
            used = exchange.prompt_tokens + exchange.completion_tokens
            if not used and exchange.asked:  # the caller left before the engine had counted: an estimate
                used = exchange.body_bytes // _BYTES_A_TOKEN + exchange.events
            self._bucket(exchange.caller, "tokens").left -= used

    def _bucket(self, caller: str, kind: str) -> _Bucket:
        now = time.monotonic()
        bucket = self._buckets.get((caller, kind))
        if bucket is None:
            limit = self._limits[kind]
            bucket = self._buckets[caller, kind] = _Bucket(limit, float(limit), now)
        bucket.refill(now)
        return bucket


def _describe(exchange: Exchange, buckets: Mapping[str, _Bucket]) -> None:
    for kind, bucket in buckets.items():
        exchange.more_headers |= {
            f"x-ratelimit-limit-{kind}": str(bucket.limit),
            f"x-ratelimit-remaining-{kind}": str(max(0, int(bucket.left))),
            f"x-ratelimit-reset-{kind}": _duration(bucket.wait(bucket.limit)),
        }


def _too_many(kind: str, bucket: _Bucket, wait: float) -> ApiError:
    unit = "RPM" if kind == "requests" else "TPM"
    milliseconds = ceil(wait * 1000)  # whoever comes then is let in
    used = bucket.limit - max(0, int(bucket.left))
    return ApiError(
        429,
        f"Rate limit reached on {kind} per min ({unit}): Limit {bucket.limit}, Used {used}, Requested 1. "
        f"Please try again in {_duration(wait)}.",
        type=kind,
        code="rate_limit_exceeded",
        headers={
            "Retry-After": str(max(1, ceil(milliseconds / 1000))),
            "retry-after-ms": str(milliseconds),
            "x-should-retry": "true",
        },
    )


def _duration(seconds: float) -> str:
    """As OpenAI writes it: ``6ms``, ``1.5s``, ``2m3s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 59.95:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"
