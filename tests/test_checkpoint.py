import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnlab.checkpoint import read_checkpoint
from cnnlab.checkpoint_io import BackgroundCheckpointIO, snapshot, write_checkpoint
from cnnlab.errors import InputError, TrainingError
from cnnlab.writing import write_atomically


def save(path: Path, size: int = 10) -> None:
    write_checkpoint({"cnnlab": {}, "state_dict": {"w": torch.zeros(size)}}, path)


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


def test_one_file_may_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best and the last weights were serialized and flushed twice, which took longer than an epoch."""
    content = {"cnnlab": {}, "state_dict": {"w": torch.ones(10)}}
    write_checkpoint(content, tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")
    # A later one of one name leaves the other as it is.
    save(tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "best.ckpt")["state_dict"]["w"].sum() == 10

    def refuse(*_: object) -> None:
        raise OSError("no links on this disk")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_checkpoint(content, tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").read_bytes() == (tmp_path / "last.ckpt").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_changes_while_it_is_written_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training goes on, and changes weights, moments and counts in place."""
    network = torch.nn.BatchNorm1d(4)
    weights: Any = network.state_dict()
    history = [1]
    begin = threading.Event()
    monkeypatch.setattr(threading.Thread, "run", lambda self: (begin.wait(30), self._target(*self._args)))
    writer = BackgroundCheckpointIO()
    content = {"cnnlab": {}, "state_dict": weights, "tied": weights["weight"], "callbacks": {"own": history}}
    writer.save_checkpoint(content, tmp_path / "x.ckpt", {"also": [tmp_path / "y.ckpt"]})
    weights["weight"].fill_(7)
    history.append(2)
    assert list(tmp_path.iterdir()) == []
    begin.set()
    found = writer.load_checkpoint(tmp_path / "y.ckpt")
    assert found["state_dict"]["weight"].tolist() == [1] * 4
    assert found["tied"].data_ptr() == found["state_dict"]["weight"].data_ptr()
    assert found["callbacks"] == {"own": [1]}
    assert found["state_dict"]._metadata == weights._metadata


def test_an_error_in_the_background_is_raised_later(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").mkdir()
    writer = BackgroundCheckpointIO()
    writer.save_checkpoint({"state_dict": {"w": torch.zeros(9)}}, tmp_path / "x.ckpt/y/z")
    (tmp_path / "x.ckpt/file").touch()
    writer.wait()
    writer.save_checkpoint({"state_dict": {"w": torch.zeros(9)}}, tmp_path / "x.ckpt/file/z")
    with pytest.raises(TrainingError, match=r"cannot save .*z \(36 bytes\).* resume the run"):
        writer.save_checkpoint({"state_dict": {}}, tmp_path / "other.ckpt")
    assert not (tmp_path / "other.ckpt").exists()
    writer.teardown()


def test_copies_keep_what_belongs_together() -> None:
    whole = torch.arange(6.0)
    content = {
        "a": whole[:3],
        "b": whole[3:],
        "c": whole[:3],
        "empty": [torch.zeros(0), torch.zeros(0, 2)],
        "n": (1, "x"),
    }
    found = snapshot(content)
    assert found["a"] is found["c"]
    assert found["b"].tolist() == [3, 4, 5]
    assert [one.shape for one in found["empty"]] == [(0,), (0, 2)]
    assert found["n"] == (1, "x")


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
