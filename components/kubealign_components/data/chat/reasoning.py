"""Blocks of reasoning that a template writes into the prompt: open ones, and empty ones that are closed."""

from __future__ import annotations

import re
from itertools import takewhile

_PAIR = re.compile(r"\s*([<\[]\S*?[>\]])[^<>\[\]]*([<\[]\S*?[>\]])\s*")
"""A mark, perhaps the name of a channel, and another mark."""
_SIDES = re.compile(r"start|begin|end|of|[^a-z]")
"""What the two marks of a pair differ in."""
_OPEN = re.compile(r"[<\[](?!/)(?:(?!end)\w|[|:])*think\w*\|?[>\]]\s*$", re.IGNORECASE)
"""A mark of thinking (``<think>``, ``[THINK]``, ``<|START_THINKING|>``) with nothing after it."""


def opens_block(prompt: str) -> bool:
    """Whether a rendered ``prompt`` ends with an open block of reasoning, which the answer goes on from."""
    return _OPEN.search(prompt) is not None


def empty_block(prompt: str, whole: str, answer: str) -> str:
    """The closed block of reasoning, with nothing in it, that ends ``prompt`` and is missing in ``whole``.

    A policy that does not reason is asked with it (Gemma 4), while the turns of a history are written
    without. What it samples follows the block, and so must an answer that it is trained on.

    Args:
        prompt: a rendered question, generation prompt included.
        whole: the same question with its answer.
        answer: what the answer says.

    Returns:
        The block with the blanks around it; empty where the prompt ends otherwise.
    """
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    block = prompt[shared:]
    pair = _PAIR.fullmatch(block)
    if pair is None or not whole[shared:].startswith(answer):
        return ""
    opening, closing = pair.groups()
    same = _SIDES.sub("", opening.lower()) == _SIDES.sub("", closing.lower())
    return block if same and opening != closing else ""


def with_block(prompt: str, whole: str, block: str) -> str:
    """``whole`` with the ``block`` that ends ``prompt`` before the answer, if it does not reason itself."""
    pair, head = _PAIR.fullmatch(block), prompt.removesuffix(block)
    if pair is None or head == prompt or not whole.startswith(head):
        return whole
    return whole if whole[len(head) :].lstrip().startswith(pair[1]) else prompt + whole[len(head) :]
