"""Everything KubeAlign raises on purpose.

KubeAlignError
├── ConfigError          a setting that cannot be used; names the field, the value and what fits
│   └── Unmoved          a learning rate that moved no weight
├── DataError            rows or datasets that cannot be used
│   ├── SchemaMismatch   a dataset of the wrong kind was handed to a stage
│   ├── CorruptDataset   bytes that do not match their manifest, or a manifest its recipe
│   ├── EmptyDataset     nothing is left to work on
│   └── Unanswered       a trained model without answers that can be compared
├── ChunkError           parts that do not add up to the dataset that was planned
├── StoreError           storage that cannot be reached, read or written
│   └── NotFound         no object at that URI
├── EngineError          a model that cannot be loaded or gives unusable numbers
│   ├── NotFinite        a log-probability that is no finite number
│   ├── Diverged         a training whose numbers grew out of bounds
│   └── Refusal          what a cluster does not allow
├── DriftError           two computations of one log-probability disagree
├── GateError            a quality gate of the run was not met
└── Unexpected           an error of nobody's, at the end of the process that it ended
"""

from __future__ import annotations

import re

from kubealign_components.printable import shortened

_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
"""Where an object happens to lie: the same mistake is told in the same words."""
SHOWN = 120
"""Most characters of a bad value that a message repeats."""


class KubeAlignError(Exception):
    """Base of every error a user can act on; the command line prints it without a traceback."""


class ConfigError(KubeAlignError):
    """A setting that cannot be used.

    Args:
        field: name of the setting, as the user writes it.
        value: the bad value, repeated in the message.
        expected: what would have been accepted, and what to do.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field}={shown(value)}: expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


class Unmoved(ConfigError):
    """A learning rate, or a number of steps, with which training moved no weight."""


def shown(value: object) -> str:
    """``value`` as a message repeats it: cut, with what would move the cursor of a terminal written out."""
    return shortened(_ADDRESS.sub("", repr(value)), SHOWN)


class DataError(KubeAlignError):
    """Rows or datasets that cannot be used."""


class SchemaMismatch(DataError):
    """A dataset of the wrong kind was handed to a stage."""


class CorruptDataset(DataError):
    """Bytes that do not match their manifest, or a manifest that does not match its recipe."""


class EmptyDataset(DataError):
    """Nothing is left to work on."""


class Unanswered(DataError):
    """A trained model that gives hardly any held-out prompt an answer that can be compared."""


class ChunkError(KubeAlignError):
    """Parts that do not add up to the dataset that was planned."""


class StoreError(KubeAlignError):
    """Storage that cannot be reached, read or written."""


class NotFound(StoreError):
    """No object at that URI."""


class EngineError(KubeAlignError):
    """A model that cannot be loaded, or that gives unusable numbers."""


class NotFinite(EngineError):
    """A log-probability that is no finite number."""


class Diverged(EngineError):
    """A training whose numbers grew out of bounds, as its own settings let them."""


class Refusal(EngineError):
    """What a cluster, or whoever runs it, does not allow: asking again gets the same answer."""


class DriftError(KubeAlignError):
    """Two computations of the same log-probability disagree by more than allowed."""


class GateError(KubeAlignError):
    """A quality gate that the user asked for was not met."""


class Unexpected(KubeAlignError):
    """An error that nobody foresaw, or of code that a user brought; its traceback is in the log."""


def error_kinds() -> list[type[KubeAlignError]]:
    """Every error of this module."""
    kinds = [KubeAlignError]
    for kind in kinds:
        kinds += [each for each in kind.__subclasses__() if each.__module__ == __name__]
    return kinds


FINAL = (ConfigError, DataError, ChunkError, NotFinite, Diverged, Refusal, DriftError, GateError)
"""What comes again however often the same work is tried: settings, data or numbers are at fault."""
FINAL_CODE = 65
"""Exit code of a process that ends with one of those: starting it again changes nothing."""
