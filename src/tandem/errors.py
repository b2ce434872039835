"""Everything Tandem raises on purpose.

::

    TandemError
    ├── SetupError            the service cannot start or go on: says what, and what to do; carries the exit code
    │   ├── SettingsError     a setting is wrong: names its source and path
    │   ├── DoesNotFit        the engines need more than the machine has: names settings with which they would fit
    │   └── EngineError       an engine ended or refused to start
    └── ApiError              a request is refused or failed: an HTTP status and OpenAI's error object
        └── EngineFault       … and the engine is at fault, not the caller
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
