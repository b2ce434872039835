"""Keys let callers in, tell who they are, and bound how often they come; none is ever told, logged or kept."""

import hashlib
import logging
import os
import time
from math import ceil
from pathlib import Path

import pytest

from tandem.errors import ApiError, SettingsError
from tandem.router.exchange import Exchange
from tandem.router.keys import Keys, parse
from tandem.settings import RouterSettings

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-fedcba9876543210"
CHAT = "/v1/chat/completions"


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def names(text: str) -> dict[str, str]:
    """What :func:`parse` finds, with digests in hexadecimal."""
    return {digest.hex(): name for digest, name in parse(text, "keys").items()}


class Clock:
    """The monotonic clock, standing still."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def exchange(authorization: str | None = None, path: str = CHAT) -> Exchange:
    """A request that has just come."""
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    return Exchange("POST", path, headers, 60.0)


def admitted(keys: Keys, key: str) -> str:
    """The caller's name, by its key."""
    asking = exchange(f"Bearer {key}")
    keys.admit(asking)
    return asking.caller


def refused(keys: Keys, authorization: str | None, path: str = CHAT) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.admit(exchange(authorization, path))
    assert caught.value.status == 401
    assert caught.value.type == "invalid_request_error"
    return caught.value


def file(folder: Path, text: str) -> Path:
    """A key file of ``text``, put in the place of an earlier one as editors do."""
    path, new = folder / "keys", folder / "new"
    new.write_text(text, encoding="utf-8")
    new.replace(path)
    return path


# The key file


def test_a_line_holds_a_key_or_its_hash() -> None:
    """Of each, the name; empty lines and comments do not count, nor do spaces around a line."""
    text = f"# keys\n\nalice:{ALICE}\n  bob@example.org:sha256:{sha256(BOB)}  \n   # carol:secret\nd.o-t_1:x:y\r\n"
    assert names(text) == {sha256(ALICE): "alice", sha256(BOB): "bob@example.org", sha256("x:y"): "d.o-t_1"}


def test_the_digits_of_a_hash_may_be_in_upper_case() -> None:
    assert names(f"bob:sha256:{sha256(BOB).upper()}") == {sha256(BOB): "bob"}


@pytest.mark.parametrize("line", ["bob: {key}", "bob: sha256:{hash}", "bob:sha256: {hash}"])
def test_spaces_after_a_colon_do_not_count(line: str) -> None:
    """In neither form: else a hash would pass for a key, and open the door to whoever has read the file."""
    assert names(line.format(key=BOB, hash=sha256(BOB))) == {sha256(BOB): "bob"}


@pytest.mark.parametrize(
    "wrong",
    [
        "sk-secret-no-colon",
        ":sk-secret-no-name",
        "carol:",
        "carol:   ",
        "carol smith:sk-secret",
        "carol/1:sk-secret",
        f"{'c' * 65}:sk-secret",
        "carol:sha256:",
        "carol:sha256:sk-secret",
        f"carol:sha256:{'ab' * 31}",
        f"carol:sha256:{'ab' * 33}",
        f"carol:sha256:{'xy' * 32}",
    ],
)
def test_a_wrong_line_is_named_by_its_number(wrong: str) -> None:
    """The message names the file and the line, and nothing that stands there."""
    with pytest.raises(SettingsError) as caught:
        parse(f"# secrets\nalice:{ALICE}\n{wrong}\nbob:{BOB}\n", "/etc/keys")
    message = str(caught.value)
    assert "line 3 of /etc/keys" in message
    for told in (ALICE, BOB, sha256(ALICE), "sk-secret", "carol", "ccc", "ab" * 31, "xy" * 32):
        assert told not in message


def test_the_same_key_twice_is_refused_in_whichever_forms() -> None:
    """The message names the line, and holds neither the key nor the names: in a file of ``KEY:NAME`` those are keys."""
    with pytest.raises(SettingsError) as caught:
        parse(f"{ALICE}:role\nother:x\n{BOB}:sha256:{sha256('role')}\n", "keys")
    message = str(caught.value)
    assert "line 3 of keys" in message
    for told in (ALICE, BOB, "role", sha256("role")):
        assert told not in message


def test_a_caller_may_have_several_keys() -> None:
    """So that one can be replaced by the next."""
    assert names(f"alice:{ALICE}\nalice:{BOB}\n") == {sha256(ALICE): "alice", sha256(BOB): "alice"}


@pytest.mark.parametrize("text", ["", "\n\n", "# nobody\n"])
def test_a_file_without_keys_is_refused(text: str) -> None:
    """It would let nobody in."""
    with pytest.raises(SettingsError, match="no key"):
        parse(text, "keys")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """There is none, or it is no text; the message names it, and holds nothing of it."""
    with pytest.raises(SettingsError, match="absent"):
        Keys(RouterSettings(api_keys_file=tmp_path / "absent"))
    binary = tmp_path / "binary"
    binary.write_bytes(b"alice:secret\xff\n")
    with pytest.raises(SettingsError, match="binary") as caught:
        Keys(RouterSettings(api_keys_file=binary))
    assert "secret" not in str(caught.value)


# Who is let in


def test_without_keys_everybody_is_let_in() -> None:
    """And told everything, whatever they send."""
    keys = Keys(RouterSettings())
    for authorization in (None, "Bearer x", "Basic x"):
        asking = exchange(authorization)
        keys.admit(asking)
        assert asking.caller == ""
        assert keys.told(asking)


def test_keys_of_the_file_and_the_single_key_are_let_in(tmp_path: Path) -> None:
    """Each under its name; the single one is ``default``."""
    path = file(tmp_path, f"alice:{ALICE}\nbob:sha256:{sha256(BOB)}\n")
    keys = Keys(RouterSettings(api_keys_file=path, api_key="sk-single"))
    assert [admitted(keys, key) for key in (ALICE, BOB, "sk-single")] == ["alice", "bob", "default"]


@pytest.mark.parametrize("given", [BOB, f" {BOB}\n", f"sha256:{sha256(BOB)}", f"sha256:{sha256(BOB).upper()}"])
def test_the_single_key_may_be_set_as_its_hash(given: str) -> None:
    """Which itself is no key."""
    keys = Keys(RouterSettings(api_key=given))
    assert admitted(keys, BOB) == "default"
    refused(keys, f"Bearer {given.strip()}" if given.strip() != BOB else f"Bearer {sha256(BOB)}")


def test_a_key_of_other_letters_is_let_in_as_it_was_sent() -> None:
    """Clients send a header's text in UTF-8."""
    assert admitted(Keys(RouterSettings(api_key="schlüssel-ключ")), "schlüssel-ключ") == "default"


@pytest.mark.parametrize("authorization", ["bearer {}", "BEARER {}", "Bearer   {} "])
def test_the_scheme_is_not_taken_literally(authorization: str) -> None:
    """Its case and the spaces around the key do not count."""
    keys, asking = Keys(RouterSettings(api_key=BOB)), exchange(authorization.format(BOB))
    keys.admit(asking)
    assert asking.caller == "default"


@pytest.mark.parametrize("authorization", [None, "", BOB, f"Basic {BOB}", "Bearer", "Bearer ", f"Bearer{BOB}"])
def test_a_request_without_a_key_is_told_how_to_send_one(authorization: str | None) -> None:
    """401, ``WWW-Authenticate``, OpenAI's words; what was sent is not repeated."""
    refusal = refused(Keys(RouterSettings(api_key=BOB)), authorization)
    assert refusal.message.startswith("You didn't provide an API key.")
    assert refusal.headers["WWW-Authenticate"] == "Bearer"
    assert BOB not in refusal.message


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ("sk-wrong-0123456789abcdef", "sk-w***cdef"),
        ("0123456789abcdef", "0123***cdef"),
        ("0123456789abcde", "***"),
        ("x", "***"),
        ("sk-\x01\t0123456789 abcde\xe9f", "sk-?***"),
    ],
)
def test_a_wrong_key_is_told_redacted(wrong: str, shown: str) -> None:
    """401, ``WWW-Authenticate``, ``invalid_api_key``; of a long key its ends, of a short one nothing."""
    refusal = refused(Keys(RouterSettings(api_key=BOB)), f"Bearer {wrong}")
    assert refusal.code == "invalid_api_key"
    assert refusal.headers["WWW-Authenticate"] == "Bearer"
    assert f"Incorrect API key provided: {shown}" in refusal.message
    assert refusal.message.isprintable()
    assert wrong not in refusal.message.removeprefix("Incorrect API key provided: ")


def test_a_key_that_is_nearly_right_is_wrong(tmp_path: Path) -> None:
    keys = Keys(RouterSettings(api_keys_file=file(tmp_path, f"alice:{ALICE}\nbob:{BOB}\n")))
    for wrong in (ALICE[:-1], ALICE + "f", ALICE.upper(), sha256(ALICE), f"sha256:{sha256(ALICE)}", f"alice:{ALICE}"):
        refused(keys, f"Bearer {wrong}")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/v1/health"])
def test_probes_need_no_key(path: str) -> None:
    """Health tells its reasons only to those who have one; a wrong one is told so here, too."""
    keys = Keys(RouterSettings(api_key=BOB))
    for authorization in (None, "Basic x"):
        anonymous = exchange(authorization, path)
        keys.admit(anonymous)
        assert not keys.told(anonymous)
    known = exchange(f"Bearer {BOB}", path)
    keys.admit(known)
    assert keys.told(known)
    refused(keys, "Bearer wrong", path)


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/docs", "/openapi.json", "/v1/models", "/livez/", "/health/x", CHAT]
)
def test_everything_else_needs_one(path: str) -> None:
    refused(Keys(RouterSettings(api_key=BOB)), None, path)


# A file that changes


def test_a_change_of_the_file_is_heeded(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A second later at the latest: who is new is let in, who is gone is not. The log says how many keys there are."""
    caplog.set_level(logging.INFO, "tandem.router")
    keys = Keys(RouterSettings(api_keys_file=file(tmp_path, f"alice:{ALICE}\n")))
    file(tmp_path, f"bob:{BOB}\ncarol:sk-carol\n")
    assert admitted(keys, ALICE) == "alice"
    clock.now += 1.0
    assert admitted(keys, BOB) == "bob"
    refused(keys, f"Bearer {ALICE}")
    assert [record.getMessage() for record in caplog.records] == ["the key file was read again: 2 keys"]


def test_a_file_that_is_written_in_place_is_heeded(tmp_path: Path, clock: Clock) -> None:
    path = file(tmp_path, f"alice:{ALICE}\n")
    keys = Keys(RouterSettings(api_keys_file=path))
    before = path.stat()
    path.write_text(f"bob:{BOB}\n", encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    clock.now += 1.0
    assert admitted(keys, BOB) == "bob"


def test_the_single_key_stays_when_the_file_changes(tmp_path: Path, clock: Clock) -> None:
    keys = Keys(RouterSettings(api_keys_file=file(tmp_path, f"alice:{ALICE}\n"), api_key="sk-single"))
    file(tmp_path, f"bob:{BOB}\n")
    clock.now += 1.0
    assert [admitted(keys, key) for key in (BOB, "sk-single")] == ["bob", "default"]


def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tandem.router")
    keys = Keys(RouterSettings(api_keys_file=file(tmp_path, f"alice:{ALICE}\n")))
    monkeypatch.delattr(Path, "read_text")
    clock.now += 10.0
    assert admitted(keys, ALICE) == "alice"
    assert not caplog.records


@pytest.mark.parametrize("broken", ["", f"bob:{BOB}\n{BOB}\n", f"bob:{BOB}\ncarol:{BOB}\n", f"bob:sha256:{BOB}\n"])
def test_a_change_that_breaks_the_file_keeps_the_old_keys(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """The log says what is wrong, and no secret; once it is mended, the new keys count."""
    keys = Keys(RouterSettings(api_keys_file=file(tmp_path, f"alice:{ALICE}\n")))
    file(tmp_path, broken)
    clock.now += 1.0
    assert admitted(keys, ALICE) == "alice"
    refused(keys, f"Bearer {BOB}")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(tmp_path / "keys") in record.getMessage()
    file(tmp_path, f"bob:{BOB}\n")
    clock.now += 1.0
    assert admitted(keys, BOB) == "bob"
    assert ALICE not in caplog.text
    assert BOB not in caplog.text


def test_a_file_that_stays_broken_is_complained_of_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with every second's first request."""
    keys = Keys(RouterSettings(api_keys_file=file(tmp_path, f"alice:{ALICE}\n")))
    file(tmp_path, "nonsense\n")
    for _ in range(5):
        clock.now += 1.0
        assert admitted(keys, ALICE) == "alice"
    assert len(caplog.records) == 1


def test_a_file_that_is_removed_keeps_the_old_keys(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so; when there is one again, it counts."""
    path = file(tmp_path, f"alice:{ALICE}\n")
    keys = Keys(RouterSettings(api_keys_file=path))
    path.unlink()
    clock.now += 1.0
    assert admitted(keys, ALICE) == "alice"
    assert str(path) in caplog.records[0].getMessage()
    file(tmp_path, f"bob:{BOB}\n")
    clock.now += 1.0
    assert admitted(keys, BOB) == "bob"


# Secrets


def test_no_setting_holds_a_key(tmp_path: Path) -> None:
    """Nor does what reads them."""
    settings = RouterSettings(api_key=BOB, api_keys_file=file(tmp_path, f"alice:{ALICE}\n"))
    keys = Keys(settings)
    for told in (repr(settings), str(settings), settings.model_dump_json(), repr(vars(keys))):
        assert ALICE not in told
        assert BOB not in told


def test_nothing_is_logged_of_keys_right_or_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Keys(RouterSettings(api_keys_file=file(tmp_path, f"alice:{ALICE}\n"), api_key="sk-single"))
    admitted(keys, ALICE)
    refused(keys, f"Bearer {BOB}")
    for secret in (ALICE, BOB, "sk-single", sha256(ALICE)):
        assert secret not in caplog.text


# Rates


def charged(keys: Keys, caller: str = "") -> dict[str, str]:
    """The headers that the answer to one more request gets."""
    asking = exchange()
    asking.caller = caller
    keys.charge(asking)
    return asking.more_headers


def too_many(keys: Keys, caller: str = "") -> tuple[ApiError, dict[str, str]]:
    """A request that is refused, and the headers that its answer gets beside the refusal's."""
    asking = exchange()
    asking.caller = caller
    with pytest.raises(ApiError) as caught:
        keys.charge(asking)
    assert caught.value.status == 429
    assert caught.value.code == "rate_limit_exceeded"
    return caught.value, asking.more_headers


def took(keys: Keys, prompt: int, completion: int = 0, caller: str = "") -> None:
    """A request has ended that took so many tokens."""
    asking = exchange()
    asking.caller = caller
    asking.prompt_tokens, asking.completion_tokens = prompt, completion
    keys.settle(asking)


def test_without_rates_nothing_is_counted() -> None:
    """Nor said of them."""
    keys = Keys(RouterSettings())
    took(keys, 10**9)
    assert all(charged(keys) == {} for _ in range(1000))


def test_requests_a_minute(clock: Clock) -> None:
    """So many at once; then 429 that says when to come again, in seconds and in milliseconds."""
    keys = Keys(RouterSettings(requests_per_minute=3))
    assert [charged(keys)["x-ratelimit-remaining-requests"] for _ in range(3)] == ["2", "1", "0"]
    refusal, _ = too_many(keys)
    assert refusal.type == "requests"
    assert refusal.message == (
        "Rate limit reached on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s."
    )
    assert refusal.headers["retry-after-ms"] == "20000"
    assert refusal.headers["Retry-After"] == "20"


def test_what_is_left_is_said_on_good_answers_and_on_refusals(clock: Clock) -> None:
    """OpenAI's six headers."""
    keys = Keys(RouterSettings(requests_per_minute=2, tokens_per_minute=600))
    took(keys, 15, 5)
    good = {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "580",
        "x-ratelimit-reset-tokens": "2s",
    }
    assert charged(keys) == good
    charged(keys)
    _, headers = too_many(keys)
    assert headers == good | {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s"}


def test_requests_come_back_steadily(clock: Clock) -> None:
    """One every so many seconds, and no more than a minute's worth however long nobody asks."""
    keys = Keys(RouterSettings(requests_per_minute=6))
    for _ in range(6):
        charged(keys)
    clock.now += 9.0
    too_many(keys)
    clock.now += 1.0
    charged(keys)
    too_many(keys)
    clock.now += 3600.0
    for _ in range(6):
        charged(keys)
    too_many(keys)


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    keys = Keys(RouterSettings(requests_per_minute=6))
    for _ in range(6):
        charged(keys)
    for _ in range(100):
        too_many(keys)
    clock.now += 10.0
    charged(keys)


@pytest.mark.parametrize("limit", [1, 7, 9, 11, 13, 60, 61, 77, 90, 600, 7001, 100_000])
def test_who_comes_again_when_told_is_let_in(clock: Clock, limit: int) -> None:
    """After just so many milliseconds; the seconds are those, rounded up."""
    keys = Keys(RouterSettings(requests_per_minute=limit))
    for _ in range(limit):
        charged(keys)
    for _ in range(50):
        refusal, _ = too_many(keys)
        wait = int(refusal.headers["retry-after-ms"])
        assert refusal.headers["Retry-After"] == str(max(1, ceil(wait / 1000)))
        clock.now += wait / 1000
        while True:
            try:
                charged(keys)
            except ApiError:
                break
            wait = 0
        assert wait == 0, "it came too early"


def test_tokens_are_charged_when_they_are_known(clock: Clock) -> None:
    """Who has some left may ask, and pays afterwards; who has none is told when there are some."""
    keys = Keys(RouterSettings(tokens_per_minute=600))
    charged(keys)
    took(keys, 500, 99)
    assert charged(keys)["x-ratelimit-remaining-tokens"] == "1"
    took(keys, 100, 0)
    refusal, headers = too_many(keys)
    assert refusal.type == "tokens"
    assert refusal.message.startswith("Rate limit reached on tokens per min (TPM): Limit 600, Used 600, Requested 1.")
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert 9_900 <= int(refusal.headers["retry-after-ms"]) <= 10_100
    clock.now += 5.0
    too_many(keys)
    clock.now += 5.2
    charged(keys)


def test_a_request_without_tokens_left_is_not_counted_as_one(clock: Clock) -> None:
    keys = Keys(RouterSettings(requests_per_minute=10, tokens_per_minute=60))
    took(keys, 60)
    refusal, headers = too_many(keys)
    assert refusal.type == "tokens"
    assert headers["x-ratelimit-remaining-requests"] == "10"


def test_each_caller_has_rates_of_its_own(clock: Clock) -> None:
    """What one uses up is there for the other."""
    keys = Keys(RouterSettings(requests_per_minute=2, tokens_per_minute=100))
    charged(keys, "alice")
    charged(keys, "alice")
    assert too_many(keys, "alice")[0].type == "requests"
    took(keys, 100, caller="bob")
    assert too_many(keys, "bob")[0].type == "tokens"
    assert charged(keys, "carol")["x-ratelimit-remaining-requests"] == "1"


@pytest.mark.parametrize(
    ("used", "told"),
    [(6, "600ms"), (15, "1.5s"), (1, "100ms"), (600, "1m0s"), (1230, "2m3s"), (1197, "2m0s"), (599, "59.9s")],
)
def test_times_are_written_as_openai_does(clock: Clock, used: int, told: str) -> None:
    """And sixty seconds are a minute."""
    keys = Keys(RouterSettings(requests_per_minute=10**6, tokens_per_minute=600))
    took(keys, used)
    asking = exchange()
    if used < 600:
        keys.charge(asking)
    else:
        with pytest.raises(ApiError):
            keys.charge(asking)
    assert asking.more_headers["x-ratelimit-reset-tokens"] == told
