"""Chats as a model reads them: rendered by its template, tokenised, and held against each other.

``sandbox`` runs the template, ``rendering`` gives it messages in the form that it wants, ``marks`` keeps
apart what the template writes and what a message says, ``policy`` makes prompts and completions of it;
``deferred`` says which template it is without loading it.
"""

from __future__ import annotations

from kubealign_components.data.chat.deferred import DeferredTemplate, end_token_ids
from kubealign_components.data.chat.policy import ChatTemplate
from kubealign_components.data.chat.rendering import Message, TemplateMismatch
from kubealign_components.data.chat.settings import TemplateConfig, TemplateSettings, stored_settings

__all__ = [
    "ChatTemplate",
    "DeferredTemplate",
    "Message",
    "TemplateConfig",
    "TemplateMismatch",
    "TemplateSettings",
    "end_token_ids",
    "stored_settings",
]
