"""What goes wrong between here and the Hub, each in one line. No torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from gopd_merge.errors import GopdError, InputError


@contextmanager
def explained(repo: str, made: bool = False) -> Iterator[None]:
    """Turn the library's errors into one line. `made`: the repository may be new, and empty.

    Raises InputError for what the user can mend, GopdError for the rest.
    """
    import httpx2

    try:
        yield
    except GopdError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _line(repo, error, "; the repository is as it was" if not made else "; the repository may be there, and is empty") from error


def status_of(error: BaseException | None) -> int | None:
    """The status of the response that an error, or one behind it, is about; None where nothing came back."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _line(repo: str, error: BaseException, state: str) -> GopdError:
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    status, cause = status_of(error), _cause(error)
    if isinstance(error, OfflineModeIsEnabled):
        text = "HF_HUB_OFFLINE is set, so the Hub cannot be reached; unset it"
    elif isinstance(error, RevisionNotFoundError):
        text = "has no branch of that name; make it on the Hub first, or leave --revision out"
    elif isinstance(error, RepositoryNotFoundError) or status == 401:
        text = "the Hub does not know who you are, or you may not see it; log in with: hf auth login"
    elif status == 403:
        text = "you are logged in, but may not write there; use a token with the right to write, or another name"
    elif status == 409:
        text = "is there already and you may not see it, or somebody is making it now; choose another name"
    elif status == 429:
        return GopdError(f"{repo}: the Hub has had too many requests; wait some minutes and give the command again{state}")
    elif status is not None:
        return GopdError(f"{repo}: the Hub answered {status} ({cause}); give the command again later{state}")
    else:
        return GopdError(f"{repo}: the connection to the Hub failed ({cause}); give the command again{state}")
    return InputError(f"{repo}: {text}")


def _cause(error: BaseException) -> str:
    """The first error of the chain, in a line that names no address."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
