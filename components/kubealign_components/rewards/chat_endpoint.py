"""Questions to a server that speaks OpenAI's chat completions, such as vLLM's: waiting where it is busy."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message as Headers
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from kubealign_components.config import require
from kubealign_components.engines.reward_input import Refused
from kubealign_components.errors import EngineError
from kubealign_components.printable import for_people, shortened

BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which the same question may be asked again."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_TOO_LONG = ("context length", "max_model_len", "maximum model length", "context_length_exceeded")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the endpoint that was named and to no other."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatEndpoint:
    """Where questions go."""

    url: str
    """Base of the API, such as ``http://judge:8000/v1``."""
    model: str
    key_variable: str
    """Environment variable with the key; none is sent where it is not set."""
    seconds: float
    """For one answer."""
    patience: float
    """Seconds in all for one question, the server's pauses included."""

    def __post_init__(self) -> None:
        named = self.url.startswith(("http://", "https://")) and "@" not in self.url
        require(named, "endpoint", self.url, "an http(s) URL without a key, such as http://judge:8000/v1")
        require(bool(self.model), "model", self.model, "the model's name at the endpoint")
        require(self.seconds > 0, "seconds", self.seconds, "a positive number of seconds")
        require(self.patience > 0, "patience", self.patience, "a positive number of seconds")

    def answer(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, object]) -> str:
        """What the model says to ``messages``.

        Raises:
            Refused: they are longer than the model takes.
            EngineError: the server refuses, cannot be reached, or stays busy.
        """
        body = json.dumps({"model": self.model, "messages": list(messages), **sampling}).encode()
        end = time.monotonic() + self.patience
        wait = _FIRST_WAIT
        while True:
            try:
                return self._asked(body)
            except _BusyError as busy:
                pause = wait if busy.after is None else busy.after
                if time.monotonic() + pause > end:
                    raise self._failed(f"{busy}, for {self.patience:g} s (patience)") from busy
                time.sleep(pause)
                wait = min(2 * wait, _LONGEST_WAIT)

    def _asked(self, body: bytes) -> str:
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=body,
            headers={"Content-Type": "application/json", **self._authorisation()},
        )
        try:
            with _OPENER.open(request, timeout=self.seconds) as response:
                content = json.loads(response.read())["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, error.read().decode(errors="replace"), error.headers) from None
        except (OSError, HTTPException) as error:
            raise _BusyError(f"cannot be reached ({error})") from None
        except (ValueError, LookupError, TypeError) as error:
            raise _BusyError(f"gave no chat completion ({type(error).__name__}: {error})") from None
        return content if isinstance(content, str) else ""

    def _refused(self, code: int, text: str, headers: Headers) -> Exception:
        if code in BUSY:
            return _BusyError(f"answered {code}: {shortened(text, 200)}", _seconds_of(headers["Retry-After"]))
        if code == 400 and any(words in text for words in _TOO_LONG):
            return Refused("over_length")
        if code in (401, 403):
            return self._failed(
                f"answered {code}: put the key into the environment variable {self.key_variable}"
            )
        return self._failed(f"answered {code}: {shortened(text, 300)}")

    def _authorisation(self) -> dict[str, str]:
        key = os.environ.get(self.key_variable, "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _failed(self, what: str) -> EngineError:
        return EngineError(for_people(f"{self.model} at {self.url} {what}"))


class _BusyError(Exception):
    """The server may answer later; ``after`` are the seconds that it asks for."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


def _seconds_of(retry_after: str | None) -> float | None:
    """A ``Retry-After``, in seconds or as a date (RFC 9110, section 10.2.3), in seconds from now."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
