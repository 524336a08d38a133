"""Every error says what came, what is allowed and what to do; `slug` names it in the docs."""


class NormscopeError(Exception):
    """Base of all errors that a user can cause and mend; the command line exits with 2."""

    slug = "normscope"
    told = False  # by another rank of the same run


class InputError(NormscopeError, ValueError):
    """Numbers, labels or arguments that cannot be used as they are."""

    slug = "input"


class ModelError(NormscopeError):
    """A model, factory or checkpoint that cannot be loaded or run."""

    slug = "model"


class FileError(NormscopeError):
    """A file or folder that cannot be read or written; nothing was left half-written."""

    slug = "file"


class MissingExtraError(NormscopeError):
    """An optional package is needed for this; the message carries the exact pip command."""

    slug = "extra"


class KernelError(NormscopeError):
    """A compiled kernel computes something else than its definition on this machine."""

    slug = "kernel"
