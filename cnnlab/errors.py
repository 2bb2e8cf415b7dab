"""Errors that the user can fix, without a change of cnnlab's code."""

from __future__ import annotations

import difflib
import errno
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
        ``"did you mean 'a' or 'b'?"``: see similar(); or all choices if none is similar and there are few.

    >>> nearest("cosin", ["cosine", "constant", "step"])
    "did you mean 'cosine'?"
    >>> nearest("lr", ["model.lr", "data.root"])
    "did you mean 'model.lr'?"
    >>> nearest("seed", ["seed_everything", "data.seed", "model.lr"])
    "did you mean 'data.seed' or 'seed_everything'?"
    >>> nearest("epochs", ["trainer.max_epochs", "trainer.min_epochs"])
    "did you mean 'trainer.max_epochs'?"
    >>> nearest("zzz", ["adam", "sgd"])
    "choose from 'adam', 'sgd'"
    >>> nearest("zzz", [])
    'there is nothing to choose from'
    """
    known = sorted(set(choices))
    if not known:
        return "there is nothing to choose from"
    if close := similar(name, known, count):
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if len(known) <= 20:
        return "choose from " + ", ".join(repr(c) for c in known)
    return f"none of the {len(known)} valid names is near"


def similar(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Return the choices, count at most, of the same meaning as a name, or else those that are spelled like it.

    The latter include those that contain the name as a part (lr: model.lr), and those that it abbreviates.
    """
    known = sorted(set(choices))
    plain = name.replace("-", "_").rpartition(".")[2]
    meant = {word for words in _MEANINGS if plain in words for word in words}
    if same := [choice for choice in known if choice.rpartition(".")[2] in meant]:
        return sorted(same, key=lambda choice: choice.rpartition(".")[2] != plain)[:count]
    close = [choice for choice in known if len(plain) > 2 and choice.rpartition(".")[2].startswith(plain)]
    close = list(dict.fromkeys([*close[:1], *difflib.get_close_matches(name, known, n=count, cutoff=0.6), *close]))
    parts = {choice: set(re.split("[._]", choice)) for choice in known if choice not in close}
    longer = [choice for choice, own in parts.items() if own.issuperset(re.split("[._]", name))]
    return [*close, *sorted(longer, key=len)][:count]


_MEANINGS = (
    ("out", "run", "output", "output_dir", "out_dir", "outdir", "save_dir", "dir", "folder", "o"),
    ("predict", "input", "inputs", "source"),
    ("max_epochs", "epochs", "epoch", "num_epochs", "n_epochs"),
    ("batch_size", "batch", "batchsize", "bs"),
    ("lr", "learning_rate"),
    ("num_workers", "workers"),
    ("devices", "gpus", "num_gpus"),
    ("size", "image_size", "img_size", "imgsz", "input_size", "resolution"),
    ("seed_everything", "seed", "random_seed"),
    ("ckpt_path", "checkpoint", "ckpt", "checkpoint_path"),
    ("network", "net", "arch", "architecture", "backbone"),
    ("root", "data_root", "data_dir", "data_path", "dataset"),
    ("threads", "num_threads"),
    ("share", "ratio", "amount", "fraction", "sparsity"),
    ("number", "count", "num"),
)
"""What projects call the same option."""


_REMEDIES = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "make room there, or choose another place",
    (errno.EROFS, errno.EACCES, errno.EPERM): "choose another place, or change its permissions",
    (errno.ENAMETOOLONG,): "choose a shorter name; most file systems take 255 bytes",
    (errno.EMFILE, errno.ENFILE): "allow more with ulimit -n, or set data.num_workers to a smaller number",
    (errno.ENOENT,): "check the path",
    (errno.EEXIST, errno.ENOTDIR, errno.EISDIR): "something of another kind is at this place: choose another one",
}
"""What to do after an error of the operating system, by its numbers."""
_FOREIGN = {
    r"DataLoader worker .*(?:Bus error|shared memory)|unable to (?:write to|open|mmap|allocate) .*(?:shm|torch_)": (
        "the shared memory (/dev/shm) is full, in which reader processes pass images on: make it larger (docker run "
        "--shm-size 8g), or set data.num_workers or data.batch_size to a smaller number"
    ),
    r"DataLoader worker .*(?:killed by signal|exited unexpectedly)": (
        "a process that reads images has died; often the memory was used up: set data.num_workers to a smaller number; "
        "0 reads in the training process, and shows an error of the reader itself"
    ),
    r"EADDRINUSE|[Aa]ddress already in use": (
        "the port for the processes of a run is taken: set MASTER_PORT to a free one, or leave it unset"
    ),
}
"""Errors of other libraries that the user can fix, by patterns of their messages."""


def explain_foreign(error: BaseException) -> str | None:
    """Describe an error of the operating system or of another library in one line, with a remedy; None if unknown.

    >>> explain_foreign(OSError(errno.ENOSPC, "No space left on device", "R/a.csv"))
    'R/a.csv: No space left on device; make room there, or choose another place'
    >>> explain_foreign(RuntimeError("a bug"))
    """
    for pattern, remedy in _FOREIGN.items():
        if isinstance(error, (RuntimeError, OSError)) and (found := re.search(pattern, str(error))):
            detail = next(line for line in str(error).splitlines() if found[0].splitlines()[0] in line)
            return f"{remedy} ({detail.strip()[:200]})"
    if not isinstance(error, OSError):
        return None
    if error.errno is None:  # From a reader process: the whole traceback is its text.
        return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    remedy = next((text for numbers, text in _REMEDIES.items() if error.errno in numbers), "")
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    shown = names if len(names) <= 200 else f"{names[:100]}...{names[-60:]}"
    return f"{shown}: {error.strerror}".removeprefix(": ") + (f"; {remedy}" if remedy else "")
