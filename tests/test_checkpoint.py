import resource
from pathlib import Path

import pytest
import torch

from cnnlab.checkpoint import AtomicCheckpointIO, read_checkpoint
from cnnlab.errors import InputError, TrainingError
from cnnlab.writing import write_atomically


def save(path: Path, size: int = 10) -> None:
    AtomicCheckpointIO().save_checkpoint({"cnnlab": {}, "state_dict": {"w": torch.zeros(size)}}, path)


def test_what_is_saved_can_be_read(tmp_path: Path) -> None:
    save(tmp_path / "deep/x.ckpt")
    assert read_checkpoint(tmp_path / "deep/x.ckpt")["state_dict"]["w"].shape == (10,)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot save .*x\.ckpt.*Make room"):
            save(path, size=1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no checkpoint .*none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    save(tmp_path / "x.ckpt", size=10_000)
    content = (tmp_path / "x.ckpt").read_bytes()
    (tmp_path / "x.ckpt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"x\.ckpt .*bytes\) cannot be read"):
        read_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("content", [b"a", b"\xff" * 40, bytes(range(256)), b"(lp0\n."])
def test_whatever_is_in_a_file_it_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.ckpt"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello, this is no checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save({"model": torch.zeros(3)}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match="not a checkpoint that cnnlab wrote"):
        read_checkpoint(tmp_path / "foreign.ckpt")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """Files that hold more than weights need an unsafe load (Lightning-AI/pytorch-lightning#20450)."""
    torch.save({"cnnlab": {}, "state_dict": {}, "surprise": Path("/")}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(tmp_path / "x.ckpt")
