"""Stages of LLM preference alignment: pure Python under ``stage.py``, KFP wrappers beside them."""

__version__ = "0.1.0"
