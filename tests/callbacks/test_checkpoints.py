import os
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger

from cnnlab.callbacks import BestCheckpoint, EarlyStop, ExactResume, FiniteLoss, LastCheckpoint
from cnnlab.checkpoint_io import BackgroundCheckpointIO
from cnnlab.errors import InputError, InterruptionError, TrainingError
from cnnlab.tasks import Classification
from tests.tasks.test_classification import data, task, trainer


def fit(folder: Path, root: Path, callbacks: list[Callback], ckpt_path: Path | None = None, **kwargs: Any) -> Trainer:
    seed_everything(0)
    run = trainer(folder, callbacks=[ExactResume(), *callbacks], enable_checkpointing=True, **kwargs)
    run.fit(task(lr=0.01), datamodule=data(root), ckpt_path=ckpt_path)
    return run


def load(folder: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
    return loaded


class At(Callback):
    """Does something at a batch (counted over the run)."""

    def __init__(self, batch: int, what: Any) -> None:
        self.batch = batch
        self.what = what

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self.what(pl_module, batch)


def same(a: dict[str, Any], b: dict[str, Any], *keys: str) -> bool:
    return all(torch.equal(a[key][name], b[key][name]) for key in keys for name in a[key])


def test_best_keeps_the_best_and_the_sanity_check_does_not_count(tmp_path: Path, mnist_root: Path) -> None:
    """Users met best metrics that came from the sanity check (lightning-hydra-template#287)."""
    watch: list[float] = []

    class Watch(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                assert isinstance(pl_module, Classification)
                watch.append(pl_module.results["val/accuracy"])

    best = BestCheckpoint()
    run = fit(tmp_path, mnist_root, [Watch(), best], max_epochs=4, num_sanity_val_steps=2)
    assert len(watch) == 4
    assert best.best_model_score == pytest.approx(max(watch))
    assert run.checkpoint_callback is best
    assert load(tmp_path, "best")["epoch"] == watch.index(max(watch))


def test_another_run_started_from_a_checkpoint_has_a_best_of_its_own(tmp_path: Path, mnist_root: Path) -> None:
    fit(tmp_path / "a", mnist_root, [BestCheckpoint(), LastCheckpoint()], max_epochs=3)
    fit(tmp_path / "b", mnist_root, [BestCheckpoint()], tmp_path / "a/checkpoints/last.ckpt", max_epochs=4)
    assert load(tmp_path / "b", "best")["global_step"] == 32


def test_a_moved_run_still_knows_its_best(tmp_path: Path, mnist_root: Path) -> None:
    first = BestCheckpoint()
    fit(tmp_path / "a", mnist_root, [first, LastCheckpoint()], max_epochs=3)
    (tmp_path / "a").rename(tmp_path / "b")
    second = BestCheckpoint()
    fit(tmp_path / "b", mnist_root, [second], tmp_path / "b/checkpoints/last.ckpt", max_epochs=3)
    assert second.best_model_score == first.best_model_score
    assert second.best_model_path == str(tmp_path / "b/checkpoints/best.ckpt")


def test_a_task_that_does_not_say_what_to_monitor_is_named(tmp_path: Path) -> None:
    for callback in (BestCheckpoint(), EarlyStop()):
        with pytest.raises(InputError, match="LightningModule does not say what to monitor"):
            callback.setup(trainer(tmp_path), LightningModule(), "fit")


@pytest.mark.parametrize("kind", [BestCheckpoint, EarlyStop])
def test_another_metric_than_the_tasks_needs_a_mode(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(InputError, match=r"which values of 'val/loss' are better\? Give mode"):
        kind(monitor="val/loss").setup(trainer(tmp_path), task(), "fit")
    lower = kind(monitor="val/loss", mode="min")
    lower.setup(trainer(tmp_path), task(), "fit")
    assert (lower.monitor, lower.mode) == ("val/loss", "min")


def test_early_stopping_watches_the_tasks_metric(tmp_path: Path, mnist_root: Path) -> None:
    stop = EarlyStop(patience=2)
    # With a learning rate of 0 and nothing but a linear layer the metric never moves.
    model = task(lr=0.0, network="tests.tasks.test_classification.linear")
    run = trainer(tmp_path, callbacks=[stop], max_epochs=10)
    run.fit(model, datamodule=data(mnist_root))
    assert (stop.monitor, stop.mode) == ("val/accuracy", "max")
    assert run.current_epoch == 3


@pytest.mark.parametrize(("name", "value"), [("every_n_steps", 0), ("every_n_minutes", -1.0)])
def test_impossible_intervals_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        LastCheckpoint(**{name: value})  # type: ignore[arg-type]


def test_last_is_saved_every_n_steps(tmp_path: Path, mnist_root: Path) -> None:
    saved: list[int] = []

    class Watch(Callback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            saved.append(trainer.global_step)

    fit(tmp_path, mnist_root, [Watch(), LastCheckpoint(every_n_steps=3, every_n_minutes=None)], max_epochs=2)
    assert saved == [3, 6, 8, 9, 12, 15, 16]


def test_a_save_that_is_due_at_a_validation_comes_after_it(tmp_path: Path, mnist_root: Path) -> None:
    order: list[tuple[str, int]] = []

    class Watch(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                order.append(("validation", trainer.global_step))

        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            order.append(("save", trainer.global_step))

    last = LastCheckpoint(every_n_steps=4, every_n_minutes=None)
    fit(tmp_path, mnist_root, [Watch(), last], max_epochs=1, val_check_interval=4)
    assert order == [("validation", 4), ("save", 4), ("validation", 8), ("save", 8)]


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_run_that_validates_within_epochs_goes_on_exactly(tmp_path: Path, mnist_root: Path, batch: int) -> None:
    def send(pl_module: LightningModule, images: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    fit(tmp_path / "whole", mnist_root, [LastCheckpoint()], max_epochs=2, val_check_interval=4)
    folder = tmp_path / "halves"
    with pytest.raises(InterruptionError):
        fit(folder, mnist_root, [At(batch, send), LastCheckpoint()], max_epochs=2, val_check_interval=4)
    path = folder / "checkpoints/last.ckpt"
    fit(folder, mnist_root, [LastCheckpoint()], path, max_epochs=2, val_check_interval=4)
    assert same(load(tmp_path / "whole", "last"), load(folder, "last"), "state_dict")


def test_last_is_saved_every_n_minutes(tmp_path: Path, mnist_root: Path) -> None:
    saved: list[int] = []

    class Watch(Callback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            saved.append(trainer.global_step)

    fit(tmp_path, mnist_root, [Watch(), LastCheckpoint(every_n_minutes=1e-9)], max_epochs=1)
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("batch", [3, 7, 12])
def test_a_signal_stops_at_the_end_of_the_step_and_the_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, mnist_root: Path, signum: signal.Signals, batch: int
) -> None:
    def send(pl_module: LightningModule, images: Any) -> None:
        os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    fit(tmp_path / "whole", mnist_root, [LastCheckpoint()], max_epochs=2)
    folder = tmp_path / "halves"
    with pytest.raises(InterruptionError, match=f"{signum.name} after step {batch + 1}.*cnnlab resume") as stopped:
        fit(folder, mnist_root, [At(batch, send), LastCheckpoint()], max_epochs=2)
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    assert load(folder, "last")["global_step"] == batch + 1
    fit(folder, mnist_root, [LastCheckpoint()], folder / "checkpoints/last.ckpt", max_epochs=2)
    assert same(load(tmp_path / "whole", "last"), load(folder, "last"), "state_dict")


def test_a_signal_before_the_first_step_stops_there(tmp_path: Path, mnist_root: Path) -> None:
    class Early(Callback):
        def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptionError, match=r"stopped by SIGTERM before its first step$"):
        fit(tmp_path, mnist_root, [Early(), LastCheckpoint()], num_sanity_val_steps=1)
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


def test_a_second_signal_while_it_saves_or_finishes_does_no_harm(tmp_path: Path, mnist_root: Path) -> None:
    class Again(Callback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    def send(pl_module: LightningModule, images: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    class Finishing(DummyLogger):
        def finalize(self, status: str) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            finished.append(status)

    finished: list[str] = []
    with pytest.raises(InterruptionError):
        fit(tmp_path, mnist_root, [At(4, send), Again(), LastCheckpoint()], logger=Finishing())
    assert load(tmp_path, "last")["global_step"] == 5
    assert finished == ["failed"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path, mnist_root: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    part = tmp_path / "checkpoints/.last.ckpt.123.part"
    part.write_bytes(b"half")
    # What an export is writing is none of the training's business.
    (tmp_path / ".model.onnx.1.part").mkdir()
    fit(tmp_path, mnist_root, [LastCheckpoint()], max_epochs=1)
    assert not part.exists()


def test_a_signal_at_an_epochs_last_batch_waits_for_the_validation(tmp_path: Path, mnist_root: Path) -> None:
    def send(pl_module: LightningModule, images: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    best = BestCheckpoint()
    with pytest.raises(InterruptionError):
        fit(tmp_path, mnist_root, [At(7, send), best, LastCheckpoint()], max_epochs=2)
    assert best.best_model_score is not None
    assert load(tmp_path, "best")["global_step"] == load(tmp_path, "last")["global_step"] == 8


def test_a_signal_within_an_accumulated_group_waits_for_its_end(tmp_path: Path, mnist_root: Path) -> None:
    def send(pl_module: LightningModule, images: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptionError):
        fit(tmp_path, mnist_root, [At(1, send), LastCheckpoint()], accumulate_grad_batches=4)
    assert load(tmp_path, "last")["global_step"] == 1


def test_an_error_saves_what_it_has_not_touched(tmp_path: Path, mnist_root: Path) -> None:
    def fail(pl_module: LightningModule, images: Any) -> None:
        raise RuntimeError("a broken cable")

    with pytest.raises(RuntimeError, match="broken cable"):
        fit(tmp_path, mnist_root, [At(5, fail), LastCheckpoint()], max_epochs=2)
    assert load(tmp_path, "last")["global_step"] == 5
    fit(tmp_path, mnist_root, [LastCheckpoint()], tmp_path / "checkpoints/last.ckpt", max_epochs=2)
    fit(tmp_path / "whole", mnist_root, [LastCheckpoint()], max_epochs=2)
    assert same(load(tmp_path / "whole", "last"), load(tmp_path, "last"), "state_dict")


def test_an_error_within_an_accumulated_group_or_a_validation_saves_nothing(tmp_path: Path, mnist_root: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a broken cable")

    with pytest.raises(RuntimeError, match="broken cable"):
        fit(tmp_path / "group", mnist_root, [At(6, fail), LastCheckpoint()], accumulate_grad_batches=4)
    assert not (tmp_path / "group/checkpoints/last.ckpt").exists()

    class FailInValidation(Callback):
        def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if not trainer.sanity_checking:
                raise RuntimeError("a broken cable")

    with pytest.raises(RuntimeError, match="broken cable"):
        fit(tmp_path / "val", mnist_root, [FailInValidation(), LastCheckpoint()])
    assert not (tmp_path / "val/checkpoints/last.ckpt").exists()


def poison(pl_module: LightningModule, batch: Any) -> None:
    assert isinstance(pl_module, Classification)
    with torch.no_grad():
        next(pl_module.network.parameters()).fill_(float("nan"))


def test_a_loss_that_is_not_a_number_stops_the_run_and_overwrites_nothing(tmp_path: Path, mnist_root: Path) -> None:
    callbacks = [FiniteLoss(), BestCheckpoint(), LastCheckpoint(every_n_steps=2)]
    with pytest.raises(TrainingError, match=r"loss of training batch 13 .*keeping best\.ckpt and last\.ckpt"):
        fit(tmp_path, mnist_root, [At(13, poison), *callbacks], max_epochs=3)
    for name, step in (("last", 12), ("best", 8)):
        saved = load(tmp_path, name)
        assert saved["global_step"] == step
        assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_on_an_accelerator_a_save_looks_first(tmp_path: Path) -> None:
    guard = FiniteLoss(every_n_steps=50)
    run = trainer(tmp_path)
    guard._first_bad = torch.tensor(17)
    with pytest.raises(TrainingError, match="training batch 17"):
        guard.on_save_checkpoint(run, task(), {})


@pytest.mark.parametrize(("mode", "worse", "better"), [("max", 0.4, 0.6), ("min", 0.6, 0.4)])
def test_of_equally_good_weights_the_later_are_kept(
    tmp_path: Path, mode: Literal["min", "max"], worse: float, better: float
) -> None:
    """On a small validation set ties are common, and the first of them was trained least."""
    best = BestCheckpoint("val/score", mode)
    best.best_model_score = torch.tensor(0.5)
    best.kth_best_model_path = "best.ckpt"
    best.best_k_models = {"best.ckpt": torch.tensor(0.5)}
    own = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_checkpointing=False)
    kept = [best.check_monitor_top_k(own, torch.tensor(score)) for score in (worse, 0.5, better)]
    assert [bool(one) for one in kept] == [False, True, True]


class Written(BackgroundCheckpointIO):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[list[str]] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        also = (storage_options or {}).get("also", ())
        self.paths.append([f"{Path(one).stem} {checkpoint['global_step']}" for one in (path, *also)])
        super().save_checkpoint(checkpoint, path, storage_options)


def test_the_best_and_the_last_weights_are_written_once(tmp_path: Path, mnist_root: Path) -> None:
    """Two files of 282 MB were serialized and flushed one after another, for 4.7 s between epochs of 3.7 s."""
    writer, best = Written(), BestCheckpoint(monitor="train/loss", mode="max")
    fit(tmp_path, mnist_root, [best, LastCheckpoint()], max_epochs=3, plugins=[writer])
    # The loss of training falls: the first epoch's is the largest.
    assert writer.paths == [["last 8", "best 8"], ["last 16"], ["last 24"]]
    assert not (tmp_path / "checkpoints/best.ckpt").samefile(tmp_path / "checkpoints/last.ckpt")
    assert load(tmp_path, "best")["global_step"] == 8
    assert load(tmp_path, "best")["callbacks"]["BestCheckpoint"]["best_model_score"] == best.best_model_score


def test_the_best_weights_within_an_epoch_are_kept(tmp_path: Path, mnist_root: Path) -> None:
    writer = Written()
    run = fit(
        tmp_path, mnist_root, [BestCheckpoint(), LastCheckpoint()], max_epochs=1, val_check_interval=4, plugins=[writer]
    )
    assert run.global_step == 8
    assert writer.paths[0] == ["last 4", "best 4"]
    assert {path for paths in writer.paths for path in paths} >= {"last 8"}


def test_the_best_weights_are_saved_alone_where_nothing_else_saves_them(tmp_path: Path, mnist_root: Path) -> None:
    alone, accumulated = Written(), Written()
    fit(tmp_path / "a", mnist_root, [BestCheckpoint()], max_epochs=1, plugins=[alone])
    assert alone.paths == [["best 8"]]
    # In the middle of an accumulated group, a run cannot be resumed.
    callbacks: list[Callback] = [BestCheckpoint(), LastCheckpoint()]
    settings: dict[str, Any] = {"val_check_interval": 3, "accumulate_grad_batches": 2, "plugins": [accumulated]}
    fit(tmp_path / "b", mnist_root, callbacks, max_epochs=1, **settings)
    assert accumulated.paths[0] == ["best 1"]


def test_epochs_between_saves(tmp_path: Path, mnist_root: Path) -> None:
    writer = Written()
    fit(tmp_path, mnist_root, [LastCheckpoint(every_n_epochs=2)], max_epochs=5, plugins=[writer])
    assert writer.paths == [["last 16"], ["last 32"], ["last 40"]]
    with pytest.raises(InputError, match=r"every_n_epochs is 0"):
        LastCheckpoint(every_n_epochs=0)
