"""The error tree of `contrib`.

Refused
├── BadRows                     input rows that cannot be taken: the whole input is refused, nothing is stored
│   ├── UnreadableFile          missing, a folder, an unknown format, not what its name says
│   ├── WrongEncoding           text that is not UTF-8
│   ├── UnreadableRow           one row that cannot be read; the message names file and line
│   ├── RowTooLarge             one row over the limit
│   ├── MixedKinds              texts, pairs and chats in one data set
│   └── EmptyDataset            no rows at all
├── BadDatasetName              a name that could not be typed back
├── DatasetExists               the name is taken and neither append nor replace was chosen
├── UnknownDataset              no data set of that name in this store
├── NotPermitted                no permit covers what was to be read
├── BadPermit                   a permit that makes no sense
├── RowsSealed                  rows are encrypted: a key is needed, or the passphrase is wrong
├── SplitConflict               a row would be training in one data set and held out in another
├── SelectionRefused            Fisher, residual or rule from which nothing can be chosen
├── MergeRefused                registers, weights and recipe that do not fit together
├── BadModel                    model files that are not what they say
│   ├── CorruptModel            truncated or altered: fetch them again
│   ├── UnsafeModel             a format that may run code when it is read
│   └── WrongModel              whole, but not a model this program can train
├── UnknownModel                no model of that name or digest in the cache
├── BadAdapter                  adapter shape, vector and model that do not fit together
├── ExportExists                something lies where an export should go
├── BadExport                   an exported folder is not what its card says
├── NothingToLearn              no row gives a sequence to train or measure on
├── BadJob                      a request to the worker that makes no sense
├── Diverged                    training left the finite numbers
└── TokenizerUnfit              the model's tokenizer or chat template cannot carry a loss mask
Retry
├── RowsBusy                    another process writes to the row store
├── RowsFull                    the disk is full; nothing was stored
├── NoSpace                     the disk is full; no model file was left behind
└── DownloadFailed              a package could not be fetched, or is not the one that was pinned
Fatal
└── RowsDamaged                 rows.db is not a row store that this version can read
    └── RowsOutdated            it is of an older version that a writer brings up to date
"""

from __future__ import annotations

from typing import ClassVar

from protocol.errors import Fatal, Refused, Retry


class BadRows(Refused):
    """Input rows that cannot be taken; nothing of the input is stored."""

    code: ClassVar[str] = "bad-rows"


class UnreadableFile(BadRows):
    """The file is missing, has an unknown format, or is not what its name says."""

    code: ClassVar[str] = "unreadable-file"


class WrongEncoding(BadRows):
    """The file is not UTF-8 text."""

    code: ClassVar[str] = "wrong-encoding"


class UnreadableRow(BadRows):
    """One row cannot be read."""

    code: ClassVar[str] = "unreadable-row"


class RowTooLarge(BadRows):
    """One row is over the size limit."""

    code: ClassVar[str] = "row-too-large"


class MixedKinds(BadRows):
    """Texts, pairs and chats stand in one data set."""

    code: ClassVar[str] = "mixed-kinds"


class EmptyDataset(BadRows):
    """There is no row to take."""

    code: ClassVar[str] = "empty-dataset"


class BadDatasetName(Refused):
    """The name of a data set has characters or a length that are not allowed."""

    code: ClassVar[str] = "bad-dataset-name"


class DatasetExists(Refused):
    """The name is taken, and neither append nor replace was chosen."""

    code: ClassVar[str] = "dataset-exists"


class UnknownDataset(Refused):
    """The store has no data set of that name."""

    code: ClassVar[str] = "unknown-dataset"


class NotPermitted(Refused):
    """No permit covers these rows: none was given, or it is for another data set, action or time."""

    code: ClassVar[str] = "not-permitted"


class BadPermit(Refused):
    """A permit that makes no sense."""

    code: ClassVar[str] = "bad-permit"


class RowsSealed(Refused):
    """The rows are encrypted and the key that opens them is missing or another one."""

    code: ClassVar[str] = "rows-sealed"


class SplitConflict(Refused):
    """A row would be training material in one data set and held out in another."""

    code: ClassVar[str] = "split-conflict"


class TokenizerUnfit(Refused):
    """The tokenizer or its chat template cannot tell the answers from the rest."""

    code: ClassVar[str] = "tokenizer-unfit"


class RowsBusy(Retry):
    """Another process is writing to the row store."""

    code: ClassVar[str] = "rows-busy"


class RowsFull(Retry):
    """The disk is full; nothing was stored."""

    code: ClassVar[str] = "rows-full"


class DownloadFailed(Retry):
    """A package could not be fetched, or its digest is not the pinned one."""

    code: ClassVar[str] = "download-failed"


class RowsDamaged(Fatal):
    """The row store is not one that this version can read."""

    code: ClassVar[str] = "rows-damaged"


class RowsOutdated(RowsDamaged):
    """The row store is of an older version; whoever opens it for writing brings it up to date."""

    code: ClassVar[str] = "rows-outdated"


class SelectionRefused(Refused):
    """Fisher, residual or rule from which nothing can be chosen."""

    code: ClassVar[str] = "bad-selection"


class MergeRefused(Refused):
    """Registers, weights and recipe that do not fit together."""

    code: ClassVar[str] = "bad-merge"


class BadModel(Refused):
    """Model files that are not what they say."""

    code: ClassVar[str] = "bad-model"


class CorruptModel(BadModel):
    """A model file is truncated or altered."""

    code: ClassVar[str] = "corrupt-model"


class UnsafeModel(BadModel):
    """The model comes in a format that may run code when it is read."""

    code: ClassVar[str] = "unsafe-model"


class WrongModel(BadModel):
    """The files are whole, but not a model this program can train."""

    code: ClassVar[str] = "wrong-model"


class UnknownModel(Refused):
    """No model of that name or digest is in the cache."""

    code: ClassVar[str] = "unknown-model"


class BadAdapter(Refused):
    """Adapter shape, vector and model that do not fit together."""

    code: ClassVar[str] = "bad-adapter"


class ExportExists(Refused):
    """Something lies where an export should go, and it may not be replaced."""

    code: ClassVar[str] = "export-exists"


class BadExport(Refused):
    """An exported folder is not what its card says, or has none."""

    code: ClassVar[str] = "bad-export"


class NothingToLearn(Refused):
    """No row gives a sequence to train or to measure on."""

    code: ClassVar[str] = "nothing-to-learn"


class BadJob(Refused):
    """A request to the worker that makes no sense."""

    code: ClassVar[str] = "bad-job"


class Diverged(Refused):
    """Training left the finite numbers."""

    code: ClassVar[str] = "diverged"


class NoSpace(Retry):
    """The disk is full; no model file was left behind."""

    code: ClassVar[str] = "no-space"
