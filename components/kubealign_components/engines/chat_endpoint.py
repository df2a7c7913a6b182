"""Questions to a server that speaks OpenAI's chat completions, such as vLLM's: waiting where it is busy."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message as Headers
from email.utils import parsedate_to_datetime
from http.client import HTTPException, InvalidURL
from urllib.parse import urlsplit

from kubealign_components.config import require
from kubealign_components.engines.reward_input import Refused
from kubealign_components.errors import EngineError
from kubealign_components.printable import for_people, shortened

log = logging.getLogger(__name__)

BUSY = (408, 429, 500, 502, 503, 504)
"""Answers after which the same question may be asked again."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_QUIET = 60.0
"""Seconds after a line in the log about an endpoint that is waited for, before there is another."""
_NO_HOST = (socket.EAI_NONAME, socket.EAI_NODATA)
_OTHERWISE = {"max_tokens": "max_completion_tokens", "temperature": "", "seed": ""}
"""What takes the place of a setting that a server refuses, as one for models that reason does; or nothing."""
_GIVEN = re.compile(r"""\\*["']\w+\\*["']\s*:|\b\w+=""")
"""Names of what a repeated request gives, as JSON or Python writes them."""
_ECHO = re.compile(r"""\bmessages\\*["']?\s*[:=]""")
"""A sign of a repeated request."""
_TOO_LONG = ("context length", "max_model_len", "maximum model length", "context_length_exceeded")


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """A token of an answer."""

    text: str
    alternatives: Mapping[str, float]
    """Log-probabilities of the likeliest tokens in its place, as many as were asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says."""

    text: str
    tokens: Sequence[AnswerToken] = ()
    """Its tokens, where log-probabilities were asked for and the server gives them."""


class NoLogprobs(EngineError):
    """The server refuses to give log-probabilities."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the endpoint that was named and to no other."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
_LAST_TOLD: dict[str, float] = {}
"""When the log last had a line about an endpoint, by its URL."""


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
    _refused_settings: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Those of :data:`_OTHERWISE` that the server has refused, and what takes their place."""

    def __post_init__(self) -> None:
        expected = "an http(s) URL without a key, such as http://judge:8000/v1"
        require(_is_base(self.url), "endpoint", self.url, expected)
        require(bool(self.model), "model", self.model, "the model's name at the endpoint")
        require(self.seconds > 0, "seconds", self.seconds, "a positive number of seconds")
        require(self.patience > 0, "patience", self.patience, "a positive number of seconds")

    def answer(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, object]) -> Answer:
        """What the model says to ``messages``.

        A limit of tokens, temperature or seed that the server refuses by name is given otherwise, or left to
        the server, with a warning.

        Raises:
            Refused: they are longer than the model takes.
            NoLogprobs: it was asked for log-probabilities, which the server does not give.
            EngineError: the key is none, the server refuses, cannot be reached, or stays busy.
        """
        headers = {"Content-Type": "application/json", **self._authorisation()}
        end = time.monotonic() + self.patience
        wait = _FIRST_WAIT
        while True:
            refused = dict(self._refused_settings)
            settings = {refused.get(name, name): value for name, value in sampling.items()}
            settings.pop("", None)
            body = json.dumps({"model": self.model, "messages": list(messages), **settings}).encode()
            try:
                return self._asked(body, headers, messages)
            except _SettingRefusedError as error:
                if error.setting in refused or error.setting not in sampling:
                    raise self._failed(str(error)) from None
                self._give_otherwise(error)
            except _BusyError as busy:
                pause = wait if busy.after is None else busy.after
                if time.monotonic() + pause > end:
                    raise self._failed(f"{busy}, for {self.patience:g} s (patience)") from busy
                self._tell(f"{busy}; asked again for up to {self.patience:g} s (patience)")
                time.sleep(pause)
                wait = min(2 * wait, _LONGEST_WAIT)

    def _give_otherwise(self, error: _SettingRefusedError) -> None:
        if error.setting not in self._refused_settings:
            other = _OTHERWISE[error.setting]
            self._refused_settings[error.setting] = other
            instead = f"{other} is given instead" if other else f"the server's own {error.setting} holds"
            log.warning("%s", self._text(f"{error}; {instead}"))

    def _asked(
        self, body: bytes, headers: Mapping[str, str], messages: Sequence[Mapping[str, str]]
    ) -> Answer:
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, data=body, headers=dict(headers))
        try:
            with _OPENER.open(request, timeout=self.seconds) as response:
                text = response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, _body_of(error), error.headers, messages) from None
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from None
        except ValueError as error:  # its text may repeat what was sent, the key too
            raise self._failed(f"cannot be asked ({type(error).__name__})") from None
        return self._said(text)

    def _said(self, text: str) -> Answer:
        """What the model says in the body ``text`` of an answer."""
        try:
            choice = json.loads(text)["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            if text.strip() and not text.lstrip().startswith("{"):
                raise self._failed(
                    f"answers what is no JSON: {shortened(text.strip(), 100)!r}; endpoint must be the base "
                    "of an OpenAI-compatible API, which often ends in /v1"
                ) from None
            reason = f": {shortened(text.strip(), 200)}" if '"error"' in text else ""
            raise _BusyError(f"gave no chat completion ({type(error).__name__}){reason}") from None
        return Answer(_text_of(content), _tokens(choice))

    def _unreachable(self, error: Exception) -> Exception:
        """What to raise where no answer came: waiting brings no host, no trust and no other URL."""
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        no_host = isinstance(cause, socket.gaierror) and cause.errno in _NO_HOST
        if no_host or isinstance(cause, (ssl.SSLCertVerificationError, InvalidURL)):
            return self._failed(f"cannot be reached ({cause}); correct endpoint, or what it names")
        return _BusyError(f"cannot be reached ({cause})")

    def _refused(
        self, code: int, text: str, headers: Headers, messages: Sequence[Mapping[str, str]]
    ) -> Exception:
        if code in BUSY:
            return _BusyError(f"answered {code}: {shortened(text, 200)}", _seconds_of(headers["Retry-After"]))
        said = _without_echo(text, messages) if code in (400, 422) else ""
        if code == 400 and any(words in said for words in _TOO_LONG):
            return Refused("over_length")
        named = (_parameter(text) if said else "") or said
        if "logprob" in named.lower():
            return NoLogprobs(self._text(f"answered {code}: {shortened(text, 200)}"))
        if setting := next((name for name in _OTHERWISE if re.search(rf"\b{name}\b", named)), ""):
            return _SettingRefusedError(f"answered {code}: {shortened(text, 300)}", setting)
        if code in (401, 403):
            return self._failed(
                f"answered {code}: put the key into the environment variable {self.key_variable}"
            )
        return self._failed(f"answered {code}: {shortened(text, 300)}")

    @property
    def _key(self) -> str:
        # A secret that was made of a file ends in that file's newline.
        return os.environ.get(self.key_variable, "").strip()

    def _authorisation(self) -> dict[str, str]:
        key = self._key
        if not (key.isascii() and key.isprintable()):
            raise EngineError(
                f"the environment variable {self.key_variable} holds no key: expected one line of ASCII "
                "characters; set it anew"
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _tell(self, what: str) -> None:
        """Say in the log that the endpoint is waited for; once a while, however many questions wait."""
        now = time.monotonic()
        if now - _LAST_TOLD.get(self.url, -_QUIET) >= _QUIET:
            _LAST_TOLD[self.url] = now
            log.warning("%s", self._text(what))

    def _failed(self, what: str) -> EngineError:
        return EngineError(self._text(what))

    def _text(self, what: str) -> str:
        # Of the key, as a server may repeat it, nothing is told, whatever its variable is called.
        key = self._key
        return for_people(f"{self.model} at {self.url} {what.replace(key, '…') if key else what}")


class _BusyError(Exception):
    """The server may answer later; ``after`` are the seconds that it asks for."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


class _SettingRefusedError(Exception):
    """The server does not take a ``setting`` as it was given."""

    def __init__(self, text: str, setting: str) -> None:
        super().__init__(text)
        self.setting = setting


def _text_of(content: object) -> str:
    """What an answer says: a text, or the texts among its parts, of which others are reasoning."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _is_base(url: str) -> bool:
    """Whether ``url`` names a server and holds no key."""
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not any(mark in url for mark in " @?#")
    return whole and plain and parts.scheme in ("http", "https")


def _tokens(choice: Mapping[str, object]) -> list[AnswerToken]:
    """The tokens of a choice with their alternatives; none where the server tells none, or something else."""
    listed = choice.get("logprobs")
    content = listed.get("content") if isinstance(listed, Mapping) else None
    try:
        return [
            AnswerToken(
                str(token["token"]),
                {str(one["token"]): float(one["logprob"]) for one in token.get("top_logprobs") or ()},
            )
            for token in content or ()
        ]
    except (LookupError, TypeError, ValueError, AttributeError):
        return []


def _without_echo(text: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What a server says of its refusal, without what it repeats: the question, and the names of what was
    given with it, which are not what is refused."""
    for content in (message["content"] for message in messages):
        plain = json.dumps(content), json.dumps(content, ensure_ascii=False), repr(content)
        written = [content, *(form[1:-1] for form in plain)]
        for form in filter(None, (*(json.dumps(one)[1:-1] for one in written[1:]), *written[::-1])):
            text = text.replace(form, "")
    return _GIVEN.sub(" ", text) if _ECHO.search(text) else text


def _parameter(text: str) -> str:
    """The parameter that an error in OpenAI's form is about; empty where it names none, or ``"None"``."""
    try:
        error = json.loads(text)["error"]["param"]
    except (ValueError, LookupError, TypeError):
        return ""
    return error if isinstance(error, str) and error != "None" else ""


def _body_of(error: urllib.error.HTTPError) -> str:
    """What the server says of its refusal, as far as it came."""
    try:
        return error.read().decode(errors="replace")
    except (OSError, HTTPException):
        return ""


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
