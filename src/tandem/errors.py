"""Everything Tandem raises on purpose.

::

    TandemError
    ├── SetupError            the service cannot start or go on: says what, and what to do; carries the exit code
    │   ├── SettingsError     a setting is wrong: names its source and path
    │   ├── DoesNotFit        the engines need more than the machine has: names settings with which they would fit
    │   └── EngineError       an engine ended or refused to start
    ├── ApiError              a request is refused or failed: an HTTP status and OpenAI's error object
    │   └── EngineFault       … and the engine is at fault, not the caller
    └── ClientError           Tandem's client has no vectors to give; a foreign error behind it is its cause
        ├── ClientConnectionError   nobody answers at that address, or the connection broke
        ├── ClientTimeoutError      the deadline is over
        ├── RateLimitError          429, with the seconds after which to ask again
        ├── BadRequestError         a text or the request is wrong, with the text's index; found here or by the server
        │   ├── ModelNotFoundError  the server has no such model
        │   └── AuthenticationError the key is missing, unknown or not allowed to
        ├── DimensionMismatchError  vectors have another size than expected, with both
        ├── DecodingError           the answer is not what was asked for
        ├── ServerError             the server failed: 5xx, or an engine in this process that is dead
        └── ClientClosedError       the client was closed before
"""

from collections.abc import Mapping, Sequence


class TandemError(Exception):
    """Base of every error that Tandem raises on purpose."""


class SetupError(TandemError):
    """Something on this machine keeps the service from starting or going on.

    Args:
        cause: what is wrong and where, one sentence without a full stop.
        mend: what to do about it, one sentence; empty when there is nothing to suggest.
        exit_code: the status with which a command that meets this error ends.
    """

    def __init__(self, cause: str, mend: str = "", *, exit_code: int = 1) -> None:
        super().__init__(cause)
        self.cause = cause
        self.mend = mend
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.cause}. {self.mend}" if self.mend else self.cause


class SettingsError(SetupError):
    """A setting is wrong. Exit code 2, as for a wrong command line."""

    def __init__(self, cause: str, mend: str = "") -> None:
        super().__init__(cause, mend, exit_code=2)


class DoesNotFit(SetupError):
    """The engines need more memory than the machine has. Exit code 2: settings would mend it.

    Args:
        changes: settings, each of which would make them fit; empty where none does.
    """

    def __init__(self, cause: str, mend: str, changes: Sequence[object] = ()) -> None:
        super().__init__(cause, mend, exit_code=2)
        self.changes = tuple(changes)


class EngineError(SetupError):
    """An engine ended, or refused to start."""

    def __init__(self, engine: str, cause: str, mend: str = "") -> None:
        super().__init__(f"{engine}: {cause}", mend)
        self.engine = engine


class ApiError(TandemError):
    """A request that cannot be answered, in the form in which OpenAI says so.

    Args:
        status: the HTTP status.
        message: one or two sentences for the caller.
        type: OpenAI's class of error: ``invalid_request_error``, ``server_error``, ``rate_limit_error`` …
        param: path of the value at fault, such as ``input[3]``.
        code: OpenAI's machine-readable code, such as ``model_not_found``.
        headers: further response headers, such as ``Retry-After`` (seconds) or ``Allow``.

    Source: https://platform.openai.com/docs/guides/error-codes
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the specification's name
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object, always with these four keys."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class EngineFault(ApiError):
    """A request that an engine's fault has hit.

    Args:
        again: whether asking again may help, if the caller has seen nothing yet.
        gone: whether the engine seems to be gone, so that it should be given a moment.
        pause: seconds for which the engine asks to be left alone; None if it does not say.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        again: bool = False,
        gone: bool = False,
        pause: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        kind = "service_unavailable_error" if status == 503 else "server_error"
        super().__init__(status, message, type=kind, code=code, headers=headers)
        self.again = again
        self.gone = gone
        self.pause = pause


class ClientError(TandemError):
    """Tandem's client has no vectors to give.

    Args:
        message: what, where and, if anything can be done about it, what.
        status: the HTTP status; None where no answer came.
        code: the server's machine-readable code, such as ``model_not_found``.
        request_id: the server's id of the request, which finds its line in the server's log.
        again: whether the same request may succeed when it is sent again.
        retry_after: seconds for which the server asks to be left alone; None if it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        again: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.again = again
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message


class ClientConnectionError(ClientError):
    """Nobody answers at that address, or the connection broke before the answer was whole."""


class ClientTimeoutError(ClientError):
    """The deadline is over: ``timeout_s`` seconds for a request and all its repetitions."""


class RateLimitError(ClientError):
    """The server has had enough of this caller (429); ``retry_after`` is in seconds."""


class BadRequestError(ClientError):
    """A text, or the request itself, is wrong; asking again would not help.

    Args:
        index: the place of the text at fault in the caller's own list; None where no single text is.
        param: the server's word for what is wrong, such as ``dimensions``; None if it has none.
    """

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        param: str | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, request_id=request_id)
        self.index = index
        self.param = param


class ModelNotFoundError(BadRequestError):
    """The server has no model of that name."""


class AuthenticationError(BadRequestError):
    """The server wants a key, or another one (401, 403)."""


class DimensionMismatchError(ClientError):
    """Vectors have another size than expected.

    Args:
        expected: dimensions as set, or as the first answer had them.
        found: dimensions of this answer.
    """

    def __init__(self, expected: int, found: int, message: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class DecodingError(ClientError):
    """The answer is not what was asked for: no JSON, vectors missing or there twice, or values that are no numbers."""


class ServerError(ClientError):
    """The server, or the engine in this process, failed."""


class ClientClosedError(ClientError):
    """The client was closed before: make another."""
