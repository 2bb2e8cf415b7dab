"""What cnnlab raises when the user, not the code, has something to mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class CnnlabError(Exception):
    """Something for the user to mend: the command line prints it as one line, without a traceback, and exits with 2."""

    exit_code = 2


class InputError(CnnlabError, ValueError):
    """Bad input: the message names the thing and the remedy."""


class TrainingError(CnnlabError, RuntimeError):
    """A run that cannot go on: a loss that is not finite, a full disk."""


class InterruptionError(CnnlabError, RuntimeError):
    """A signal asked the run to stop, and it did. The command line exits with 128 + the signal's number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Say which of the choices come nearest to a name that is not among them.

    Args:
        name: What the user wrote.
        choices: The valid names.
        count: How many names to suggest at the most.

    Returns:
        ``"did you mean 'a' or 'b'?"``: those that end so after a dot (lr: model.lr), those that are alike, or those
        whose end is; or all choices where none is near and they are few.

    >>> nearest("cosin", ["cosine", "constant", "step"])
    "did you mean 'cosine'?"
    >>> nearest("lr", ["model.lr", "data.root"])
    "did you mean 'model.lr'?"
    >>> nearest("epochs", ["trainer.max_epochs", "trainer.logger"])
    "did you mean 'trainer.max_epochs'?"
    >>> nearest("zzz", ["adam", "sgd"])
    "choose from 'adam', 'sgd'"
    >>> nearest("zzz", [])
    'there is nothing to choose from'
    """
    known = sorted(set(choices))
    if not known:
        return "there is nothing to choose from"
    last = {choice: choice.rpartition(".")[2] for choice in known}

    def ending(names: Sequence[str]) -> list[str]:
        return [choice for choice in known if "." in choice and last[choice] in names]

    close = (
        ending([name])
        or difflib.get_close_matches(name, known, n=count, cutoff=0.6)
        or ending(difflib.get_close_matches(name, list(last.values()), n=count, cutoff=0.6))
    )
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close[:count]) + "?"
    if len(known) <= 20:
        return "choose from " + ", ".join(repr(c) for c in known)
    return f"none of the {len(known)} valid names is near"
