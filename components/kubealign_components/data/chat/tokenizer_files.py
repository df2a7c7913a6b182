"""A fast tokenizer read from its files with ``tokenizers`` alone, which takes no seconds to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.data.chat.ends import read_json
from kubealign_components.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import AddedToken

TOKENIZER_FILE = "tokenizer.json"
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_TEMPLATES = "additional_chat_templates"


class TokenizerFiles:
    """What chat templates are tried with: the part of transformers' fast tokenizers that they need.

    Args:
        model: a directory with ``tokenizer.json``.

    Raises:
        EngineError: it cannot be read.
    """

    is_fast = True

    def __init__(self, model: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self.backend_tokenizer = Tokenizer.from_file(str(model / TOKENIZER_FILE))
        except Exception as error:  # the library raises Exception itself
            raise EngineError(f"cannot load the tokenizer of {model}: {error}") from error
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        settings = read_json(model / "special_tokens_map.json") | read_json(model / "tokenizer_config.json")
        named = {name: _text(settings.get(name)) for name in _TOKENS}
        self.special_tokens_map = {name: text for name, text in named.items() if text}
        self.chat_template = _templates(model, settings.get("chat_template"))

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added tokens by id."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """Id of the token that stands for what there is none for."""
        return self._id("unk_token")

    def get_chat_template(self, name: str | None = None, tools: Sequence[object] | None = None) -> str:
        """The template that transformers would choose.

        Raises:
            ValueError: there are several, and none of them is the default.
        """
        templates = self.chat_template
        if isinstance(templates, str):
            return templates
        for choice in filter(None, (name, "tool_use" if tools else None, "default")):
            if choice in templates:
                return templates[choice]
        raise ValueError(
            f"it has the templates {', '.join(sorted(templates))} and none of them is the default"
        )

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token."""
        token_id = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if token_id is None else int(token_id)

    def convert_ids_to_tokens(self, token: int) -> str:
        """The token of an id, as the vocabulary writes it."""
        return str(self.backend_tokenizer.id_to_token(token))

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, added ones too."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: object) -> str:
        """The text of ``ids``."""
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, **_: object
    ) -> dict[str, list[int] | list[list[int]]]:
        texts = [text] if isinstance(text, str) else text
        encoded = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        ids = [list(one.ids) for one in encoded]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def _id(self, name: str) -> int | None:
        text = self.special_tokens_map.get(name)
        return None if text is None else self.backend_tokenizer.token_to_id(text)


def _templates(model: Path, named: object) -> str | dict[str, str]:
    """The one template, or several by name; an empty text for none. Files stand above settings."""
    templates: dict[str, str] = {}
    if isinstance(named, str):
        templates["default"] = named
    elif isinstance(named, list):
        templates |= {entry["name"]: entry["template"] for entry in named}
    file = model / "chat_template.jinja"
    if file.is_file():
        templates = {"default": file.read_text(encoding="utf-8")}
        templates |= {
            path.stem: path.read_text(encoding="utf-8") for path in (model / _MORE_TEMPLATES).glob("*.jinja")
        }
    return templates.get("default", "") if set(templates) <= {"default"} else templates


def _text(token: object) -> str:
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token or "")
