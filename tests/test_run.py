import os
import re
from pathlib import Path

import pytest

from cnnlab.errors import InputError
from cnnlab.run import RUN_VARIABLE, Run, choose, find


def test_a_new_run_is_called_after_its_recipe_and_the_time(tmp_path: Path) -> None:
    run = choose(None, "mnist", tmp_path)
    assert re.fullmatch(r"mnist-\d{8}-\d{6}", run.folder.name)
    assert run.folder.is_dir()


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    found = [choose(None, "mnist", tmp_path).folder for _ in range(12)]
    assert len(set(found)) == 12
    assert any(re.search(r"-\d{6}-2$", folder.name) for folder in found)
    assert any(re.search(r"-\d{6}-3$", folder.name) for folder in found)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_JOB_ID": "17"}, "mnist-17"),
        ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}, "mnist-17_2"),
        ({"TORCHELASTIC_RUN_ID": "abc"}, "mnist-abc"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_jobs_processes_and_requeues_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str, rank: str
) -> None:
    for name, value in {**variables, "RANK": rank, "SLURM_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    assert choose(None, "mnist", tmp_path).folder == tmp_path / expected


def test_torchrun_without_an_id_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InputError, match="--rdzv-id"):
        choose(None, "mnist", tmp_path)


def test_launched_processes_inherit_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process chose a folder of its own, or waited for the others (Lightning-AI/pytorch-lightning#7679)."""
    first = choose(None, "mnist", tmp_path)
    assert os.environ[RUN_VARIABLE] == str(first.folder)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose(None, "mnist", tmp_path) == first
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert choose(None, "mnist", tmp_path) != first


def test_the_checkpoint_of_a_run_is_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.checkpoints.mkdir()
    with pytest.raises(InputError, match="nothing to evaluate"):
        find(tmp_path)
    run.last.touch()
    assert find(tmp_path) == (run, run.last)
    run.best.touch()
    assert find(tmp_path) == (run, run.best)
    assert find(run.last) == (None, run.last)
    run.config.touch()
    assert find(run.last) == (run, run.last)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run or checkpoint .*nowhere"):
        find(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nothing to resume"):
        Run(tmp_path / "nowhere").to_resume()
