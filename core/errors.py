"""What can go wrong, as values with a wire-stable code. HTTP statuses live in ``api/errors.py`` alone.

ServingError
├── RequestError     the caller's fault; the same request fails again
├── CapacityError    nobody's fault; worth another try later
│   └── OutOfDeviceMemory   one device call did not fit; the mux halves the batch and retries
├── ExecutionError   ours; the request was fine
│   └── DeviceLost   the device cannot be used again by this process
└── UpstreamError    another server's
"""

from typing import ClassVar


class ServingError(Exception):
    """An answer other than a result.

    ``message`` is shown to the caller: it names the limit, the value and the remedy, and never
    holds a path, a key, a traceback, an address or the caller's own input.

    Raises ``ValueError`` when ``code`` is not one of the class's ``codes`` (a programming fault).
    """

    codes: ClassVar[frozenset[str]] = frozenset()
    retryable: bool = False

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        if code not in self.codes:
            raise ValueError(f"{type(self).__name__} has no code {code!r}")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.param = param  # the field at fault, where there is one
        # Seconds. Never longer than two minutes: clients that obey would seem to hang.
        self.retry_after = None if retry_after is None else min(max(retry_after, 1.0), 120.0)
        if retryable is not None:
            self.retryable = retryable  # e.g. not_ready because of a fault that cannot mend itself

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling between processes with every field intact, whatever the subclass takes."""
        return _rebuild, (type(self), self.__dict__)

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[ServingError], fields: dict[str, object]) -> ServingError:
    error = kind.__new__(kind, fields["code"], fields["message"])
    error.__dict__.update(fields)
    return error


class RequestError(ServingError):
    """The caller's fault; the same request fails again."""

    codes = frozenset(
        {
            "invalid_json",
            "unauthorized",
            "model_not_found",
            "job_not_found",
            "not_found",
            "method_not_allowed",
            "request_timeout",
            "conflict",
            "expired",
            "body_too_large",
            "image_too_large",
            "unsupported_media_type",
            "invalid_parameter",
            "unknown_field",
            "invalid_image",
            "url_not_allowed",
            "image_fetch_failed",
            "image_fetch_timeout",
            "cancelled",
        }
    )


class CapacityError(ServingError):
    codes = frozenset(
        {
            "queue_full",
            "rate_limited",
            "not_ready",
            "shutting_down",
            "model_loading",
            "gpu_out_of_memory",
            "storage_full",
        }
    )
    retryable = True


class OutOfDeviceMemory(CapacityError):
    def __init__(self, message: str = "the device ran out of memory; ask for a smaller image") -> None:
        # Not retryable: the same request meets the same memory.
        super().__init__("gpu_out_of_memory", message, retryable=False)


class ExecutionError(ServingError):
    codes = frozenset({"pipeline_error", "deadline_exceeded", "device_lost", "output_too_large"})


class DeviceLost(ExecutionError):
    """The device, or the thread that drives it, is gone for good: the process must be replaced."""

    def __init__(self, message: str = "the device stopped working; the worker is restarting") -> None:
        super().__init__("device_lost", message, retryable=True)


class UpstreamError(ServingError):
    codes = frozenset({"upstream_error", "no_upstream"})
    retryable = True
