"""Errors that the user can fix, without a change of cnnlab's code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class CnnlabError(Exception):
    """An error that the user can fix: the command line prints it as one line, without a traceback, and exits with 2."""

    exit_code = 2


class InputError(CnnlabError, ValueError):
    """Bad input: the message says what is wrong and how to fix it."""


class TrainingError(CnnlabError, RuntimeError):
    """A run that cannot continue, for example because of a loss that is not finite, or a full disk."""


class InterruptionError(CnnlabError, RuntimeError):
    """A signal asked the run to stop, and it did. The command line exits with 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Suggest the choices, count at most, that are closest to a name that is not among them.

    Returns:
        ``"did you mean 'a' or 'b'?"``: similar choices, then those that contain the name as a part (lr: model.lr);
        or all choices if none is similar and there are few.

    >>> nearest("cosin", ["cosine", "constant", "step"])
    "did you mean 'cosine'?"
    >>> nearest("lr", ["model.lr", "data.root"])
    "did you mean 'model.lr'?"
    >>> nearest("seed", ["seed_everything", "data.seed", "model.lr"])
    "did you mean 'data.seed' or 'seed_everything'?"
    >>> nearest("zzz", ["adam", "sgd"])
    "choose from 'adam', 'sgd'"
    >>> nearest("zzz", [])
    'there is nothing to choose from'
    """
    known = sorted(set(choices))
    if not known:
        return "there is nothing to choose from"
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.6)
    parts = {choice: set(re.split("[._]", choice)) for choice in known if choice not in close}
    longer = [choice for choice, own in parts.items() if own.issuperset(re.split("[._]", name))]
    close = [*close, *sorted(longer, key=len)][:count]
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if len(known) <= 20:
        return "choose from " + ", ".join(repr(c) for c in known)
    return f"none of the {len(known)} valid names is near"
