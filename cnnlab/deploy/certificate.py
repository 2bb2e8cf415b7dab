"""The certificate of an exported file: its measurements, and the hashes of the measured files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cnnlab.errors import InputError
from cnnlab.writing import write_json


def certificate_of(path: Path) -> Path:
    """Return the path of a file's certificate.

    >>> certificate_of(Path("model.onnx")).name
    'model.onnx.json'
    """
    return path.with_name(f"{path.name}.json")


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_certificate(path: Path, parts: Iterable[Path], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Write the certificate of a file.

    Args:
        path: The file.
        parts: All files that it consists of, including itself.
        measured: The measurements.

    Returns:
        The certificate as written.
    """
    files = {part.name: {"bytes": part.stat().st_size, "sha256": sha256(part)} for part in parts}
    certificate = {"files": files, **measured}
    write_json(certificate_of(path), certificate)
    return certificate


def verify(path: Path) -> dict[str, Any]:
    """Read a file's certificate, and check that it belongs to this file.

    Raises:
        InputError: If there is no certificate, if it cannot be read, or if the file is not the one that was measured.
    """
    where = certificate_of(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if not where.is_file():
        raise InputError(f"{path} has no certificate {where.name} beside it: copy it along, or export the file again")
    try:
        certificate: dict[str, Any] = json.loads(where.read_text(encoding="utf-8"))
        files = {name: said["sha256"] for name, said in certificate["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is no certificate of cnnlab's: export {path.name} again") from error
    if path.name not in files:
        raise InputError(f"{where} is the certificate of {', '.join(files)}, not of {path.name}: they were renamed")
    for name, known in files.items():
        part = path.with_name(name)
        if not part.is_file():
            raise InputError(f"{path} is not whole: {part} is missing")
        if sha256(part) != known:
            raise InputError(
                f"{part} is not the file that its certificate was made for (its sha256 is another): it was changed or "
                "damaged since; export it again, or copy it again"
            )
    return certificate
