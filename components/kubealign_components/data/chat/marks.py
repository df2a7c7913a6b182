"""What a template writes and what a message says, kept apart down to the tokens.

A tokenizer turns ``<|im_end|>`` into the token that ends a turn, whoever wrote it. So the control tokens
that a message spells are rendered under private names, and swapped with the template's own afterwards: a
second tokenizer that knows control tokens by their private names alone reads the result, in one piece.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Encode: TypeAlias = Callable[[str], list[int]]
Tree: TypeAlias = "dict[str, Tree]"

RESERVED = "\U0010fffd"
"""Begins every private name. A message that has it cannot be told from a name, and is not read."""
_NAMES = 0x100000


class ReservedCharacter(Exception):
    """A message holds :data:`RESERVED`."""


class Marks:
    """The control tokens of a tokenizer, and encoding with them.

    Args:
        tokenizer: fast or slow.
        control: texts of the tokens that no message may write.
        answers: those of them that an answer may write: the template knows them.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, control: Collection[str], answers: Collection[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        spelled = sorted(set(control))
        self._names = {text: RESERVED + chr(_NAMES + i) for i, text in enumerate(spelled)}
        self._ids = {text: tokenizer.convert_tokens_to_ids(text) for text in spelled}
        self._other = self._names | {name: text for text, name in self._names.items()}
        self._all = _any_of([*spelled, RESERVED])
        self._in_answers = _any_of([*(set(spelled) - set(answers)), RESERVED])
        self._private = _any_of(self._names.values())
        self._swapped = _any_of([*self._names, *self._names.values()])

    def hidden(self, value: Any, *, answer: bool = False) -> Any:
        """``value``, a text or what JSON can hold, with control tokens under their private names.

        Args:
            value: of a message.
            answer: whether the assistant said it.

        Raises:
            ReservedCharacter: see :data:`RESERVED`.
        """
        if isinstance(value, str):
            match = (self._in_answers if answer else self._all).search(value)
            return value if match is None else self._hide(value, answer)
        if isinstance(value, dict):
            return {self.hidden(k, answer=answer): self.hidden(v, answer=answer) for k, v in value.items()}
        return [self.hidden(v, answer=answer) for v in value] if isinstance(value, list) else value

    def spelled(self, text: str) -> str:
        """``text`` as people read it, private names spelled out."""
        return self._private.sub(lambda m: self._other[m[0]], text) if RESERVED in text else text

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts. Of what messages say nothing becomes a control token."""
        plain = [text for text in texts if RESERVED not in text]
        encoded = iter(self._encode(plain) if plain else ())
        return [next(encoded) if RESERVED not in text else self._encode_apart(text) for text in texts]

    def _hide(self, text: str, answer: bool) -> str:
        if RESERVED in text:
            raise ReservedCharacter
        return (self._in_answers if answer else self._all).sub(lambda m: self._names[m[0]], text)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def _encode_apart(self, text: str) -> list[int]:
        ids: list[int] = self._renamed(self._swapped.sub(lambda m: self._other[m[0]], text))
        return ids

    @cached_property
    def _renamed(self) -> Encode:
        """Encodes a text in which control tokens stand under their private names."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return _renamed_fast(backend, self._names) if backend is not None else self._renamed_slow()

    def _renamed_slow(self) -> Encode:
        other = copy.deepcopy(self._tokenizer)
        for number, token in other._added_tokens_decoder.items():
            if token.content in self._names:
                renamed = copy.deepcopy(token)
                renamed.content = self._names[token.content]
                other._added_tokens_decoder[number] = renamed
        other._added_tokens_encoder = {t.content: i for i, t in other._added_tokens_decoder.items()}
        other.tokens_trie = type(other.tokens_trie)()
        other._update_trie()
        return lambda text: other.encode(text, add_special_tokens=False)


def _renamed_fast(backend: Tokenizer, names: dict[str, str]) -> Encode:
    """A copy of a tokenizer of ``tokenizers`` whose tokens have other names and the same ids."""
    from tokenizers import Tokenizer

    body = json.loads(backend.to_str())
    for token in body["added_tokens"]:
        if token["content"] in names:  # a normaliser must not change a private name
            token |= {"content": names[token["content"]], "normalized": False}
    model, vocabulary = body["model"], body["model"].get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): number for text, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(text, text), *rest] for text, *rest in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    other = Tokenizer.from_str(
        json.dumps(body | {"post_processor": None, "padding": None, "truncation": None})
    )
    return lambda text: other.encode(text, add_special_tokens=False).ids


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds the leftmost of ``texts``, and of several there the longest.

    Written as a tree of their characters: tokenizers have thousands of control tokens.
    """
    tree: Tree = {}
    for text in filter(None, texts):
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_alternatives(tree) if tree else r"(?!)")


def _alternatives(tree: Tree) -> str:
    ends = "" in tree
    branches = [re.escape(c) + _alternatives(rest) for c, rest in tree.items() if c]
    if not branches:
        return ""
    joined = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
    return f"{joined}?" if ends else joined
