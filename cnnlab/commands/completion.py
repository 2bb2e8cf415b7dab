"""cnnlab completion."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a completion script: eval "$(cnnlab completion bash)".

    Args:
        shell: Whose.
    """
    from cnnlab.errors import InputError

    try:
        import shtab  # noqa: F401
    except ImportError as error:
        raise InputError('completion needs shtab: pip install "cnnlab[completion]"') from error
    from cnnlab.commands.training import completion_script

    print(completion_script(shell))
