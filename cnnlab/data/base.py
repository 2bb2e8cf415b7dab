"""VisionDataModule: the interface of all data modules of cnnlab, for tasks and the command line."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnlab.batch import Batch
from cnnlab.checkpoint import LINKED
from cnnlab.data.augmentation import as_tensor
from cnnlab.data.loaders import StepPlan, TrainLoader, cpu_count, identity_collate, init_worker_signals
from cnnlab.data.samplers import EvalSampler, TrainSampler
from cnnlab.errors import InputError
from cnnlab.image_files import listed
from cnnlab.imaging import EvalTransform, Preprocessing, preprocess
from cnnlab.lightning_compat import is_overfitting
from cnnlab.loggers import announce

_MOST_CLASSES = 20
"""How many classes are named at the start."""
_KNOWN = tuple(name for name in LINKED if name not in ("channels", "mean", "std"))
"""Attributes that a user's data module may have without naming them in PROVIDES."""

_FIRST_WORKERS, _MOST_WORKERS = 8, 64
"""How many processes read if nobody says how many: at first, and at most."""

IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
"""Mean and std of ImageNet's pixels, by the number of channels; used unless a pretrained network has its own."""


class BatchDataset(Dataset[Batch]):
    """A data set that is read a batch at a time."""

    paths: Sequence[str] = ()
    """Each sample's file; empty if samples are not files."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def __getitems__(self, draws: list[Any]) -> Batch:
        """Return the batch of these samples: (epoch, index) pairs in training, otherwise indices."""


class Subset(BatchDataset):
    """At most ``count`` samples of a data set that is read by indices, evenly spread over it."""

    def __init__(self, source: BatchDataset, count: int) -> None:
        self.source = source
        self.places = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)).tolist()

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, draws: list[int]) -> Batch:
        return self.source.__getitems__([self.places[index] for index in draws])


class WithEmptyBatches(BatchDataset):
    """A data set that also gives a batch without samples, for a process that has fewer batches than others.

    The source's batches may have any form that Batch.of accepts.

    Raises:
        InputError: In reading a batch, if Batch.of does not know its form.
    """

    def __init__(self, source: BatchDataset) -> None:
        self.source = source
        self.paths = getattr(source, "paths", ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: list[int]) -> Batch:
        batch = Batch.of(self.source.__getitems__(draws or [0]))
        return batch if draws else batch.first(0)


class ClassesMixin:
    """For a data module whose targets are classes, of images or of pixels."""

    class_names: Sequence[str]
    multi_label: bool = False
    """Whether a target is (K,) floats, one for each class, instead of one class."""
    PROVIDES: ClassVar[tuple[str, ...]] = ("channels", "mean", "std", "num_classes", "class_names", "multi_label")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def describe_targets(self) -> str:
        """The number of classes, and the first of their names."""
        names = listed(map(repr, self.class_names), most=_MOST_CLASSES)
        return f"{self.num_classes} classes, {names}"


class VisionDataModule(LightningDataModule):
    """Images and their targets for the stages of a run.

    A subclass sets train_set, val_set, test_set and predict_set in setup(). After its creation, it has the attributes
    that PROVIDES names; the command line passes them to the task. Training is resumable: the module's state is the
    epoch and the number of its samples that have been trained on.

    Args:
        batch_size: Samples per process and step, 1 or greater.
        num_workers: Processes that read ahead; 0 reads in the training process. If None, up to 8, and then more for
            training that waits for images, as far as there are processors.
        drop_last: Leave out the last, incomplete batch of a training epoch (other samples each time, since the order
            changes); it is kept if it is the only one.
        seed: Decides order and augmentation, together with epoch and index; the run's seed if None.
        eval_batch_size: Samples per process and step in validation, test and prediction, which need less memory;
            batch_size if None.

    Raises:
        InputError: If batch_size, eval_batch_size or num_workers is out of range.
    """

    train_set: BatchDataset
    val_set: BatchDataset
    test_set: BatchDataset
    predict_set: BatchDataset

    channels: int
    mean: Sequence[float]
    std: Sequence[float]

    kind: ClassVar[str | None] = None
    """The kind of targets: "labels", "masks" or "values"; None if it is unknown."""
    PROVIDES: ClassVar[tuple[str, ...]] = ("channels", "mean", "std")
    """The names of the attributes that are passed to a task."""
    RESOLVED: ClassVar[tuple[str, ...]] = ()
    """The arguments that are determined from the data or the network if None; a checkpoint keeps their values."""
    DIVIDING: ClassVar[tuple[str, ...]] = ()
    """The arguments that decide on the splits; those of a run are fixed by its manifest."""
    results_source: str | None = None
    """Where the data come from if they are not the run's own, for its results; the command line sets it."""

    def __init__(
        self,
        batch_size: int = 128,
        num_workers: int | None = 0,
        drop_last: bool = True,
        seed: int | None = None,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # Includes the arguments of subclasses: the same data can be created again from a checkpoint.
        self.save_hyperparameters(logger=False)
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size is not None and size < 1:
                raise InputError(f"data.{name} is {size}, expected 1 or more")
        if num_workers is not None and num_workers < 0:
            raise InputError(f"data.num_workers is {num_workers}, expected 0 or more")
        self.batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self.num_workers = min(_FIRST_WORKERS, cpu_count()) if num_workers is None else num_workers
        self.drop_last = drop_last
        # Lightning's seed_everything stores the run's seed here, also for the processes that it starts.
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.preprocessing: Preprocessing | None = None
        self.training_size: int | None = None
        """Height and width of the parts of large images that the task trains on; whole images if None."""
        self._resumed = (0, 0)
        self._train_sampler: TrainSampler | None = None

    def provided(self) -> dict[str, Any]:
        """What is passed to a task: the attributes in PROVIDES, and the known optional ones that this module has."""
        found = {name: getattr(self, name) for name in dict.fromkeys((*self.PROVIDES, *_KNOWN)) if hasattr(self, name)}
        if "class_names" in found:
            # A user's data module only needs the names.
            found.setdefault("num_classes", len(found["class_names"]))
            found.setdefault("multi_label", False)
        return found

    def describe_training(self) -> str:
        """One line about the training samples, for ``cnnlab data check``; after setup("fit")."""
        return f"training images: {len(self.train_set):,}"

    def eval_transform(self) -> EvalTransform:
        """The transform of an image file for evaluation.

        Raises:
            InputError: If the subclass does not define it.
        """
        raise InputError(f"{type(self).__name__} does not say how an image file is read: it lacks eval_transform()")

    def read_image(self, path: str) -> Tensor:
        """One image file as in evaluation, (channels, height, width) uint8.

        Raises:
            InputError: If the subclass does not define eval_transform(), or if the file cannot be read.
        """
        transform = self.eval_transform()
        return as_tensor(preprocess(transform.open(path), transform))

    def adopt(self, preprocessing: Preprocessing | None) -> None:
        """Adopt the preprocessing that a pretrained network expects; data of a fixed size ignore it."""
        self.preprocessing = preprocessing

    def adopt_from_trainer(self) -> None:
        """Adopt the preprocessing that the trainer's task expects."""
        if self.trainer is not None:
            task = self.trainer.lightning_module
            self.adopt(getattr(task, "preprocessing", None))
            self.training_size = getattr(task, "training_size", None)

    def train_weights(self) -> Tensor | None:
        """(N,) relative sampling weight of each training sample; None if each is drawn once an epoch."""
        return None

    def create_train_sampler(self) -> TrainSampler:
        """The sampler of the training batches."""
        weights = self.train_weights()
        return TrainSampler(
            len(self.train_set),
            self.batch_size,
            self.seed,
            drop_last=self.drop_last,
            weights=None if weights is None else weights.double().numpy(),
            repeat_first=bool(self.trainer is not None and is_overfitting(self.trainer)),
            **self._place(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled Batches."""
        sampler = self.create_train_sampler()
        sampler.resume_at(*self._resumed, self._limit(sampler))
        self._train_sampler = sampler
        kind = partial(TrainLoader, plan=self._steps_of, most_workers=self._most_workers)
        return self._loader(self.train_set, sampler, kind)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return self._eval_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return self._eval_loader(self.predict_set)

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data: samples trained on, without samples read ahead."""
        epoch, samples = self._resumed
        if self.trainer is not None:
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
            first, begun = (samples, self.batches_done()) if epoch == epochs.processed else (0, 0)
            epoch, samples = epochs.processed, first + (progress.current.processed - begun) * self._step_size
            if progress.is_last_batch:
                samples = self._train_size
            if epochs.processed == epochs.started:
                samples = 0  # Between two epochs.
        return {"epoch": epoch, "samples": samples, "step_size": self._step_size, "size": self._train_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the position in a state dict, at the same sample, whatever a step's number of samples is.

        With other data there is no such sample: it is then the same share of the epoch.
        """
        before, now = state_dict.get("size", self._train_size), self._train_size
        samples, step = state_dict.get("samples"), state_dict["step_size"]
        if samples is None:  # Older versions counted batches.
            samples = min(state_dict["batches"] * step, now)
            samples = now if samples and self.drop_last and now - samples < step else samples
        if before != now:
            samples = samples * now // before
        self._resumed = (state_dict["epoch"], samples)
        if 0 < samples < now and (before, step) != (now, self._step_size):
            announce(
                f"epoch {state_dict['epoch']} (0 is the first) goes on after {samples:,} of {now:,} samples, with "
                f"{self._step_size} samples a step (they were {step})"
            )
        if self._train_sampler is not None:
            # Some strategies count the steps, which creates the loader, before they read the checkpoint.
            self._train_sampler.resume_at(*self._resumed, self._limit(self._train_sampler))

    def batches_done(self) -> int:
        """The batches that the resumed epoch counts as trained on; 0 if it begins, or if training has not begun."""
        sampler = self._train_sampler
        if sampler is None or not self._resumed[1]:
            return 0
        return self._limit(sampler) - sampler.batches_left(self._resumed[0])

    def smallest_batch(self) -> int:
        """The smallest number of samples in a training batch, on any process."""
        sampler = self._train_sampler or self.create_train_sampler()
        return sampler.smallest_batch()

    def _limit(self, sampler: TrainSampler) -> int:
        """The batches of an epoch: all, or what trainer.limit_train_batches says."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return min(limit, len(sampler)) if isinstance(limit, int) else int(limit * len(sampler))

    def _steps_of(self) -> StepPlan | None:
        """How the batches of the coming epoch belong to steps; None if each is a step, or for a user's own task."""
        sampler, trainer = self._train_sampler, self.trainer
        counts = getattr(getattr(trainer, "lightning_module", None), "loss_counts", None)
        if trainer is None or sampler is None or counts is None or trainer.accumulate_grad_batches == 1:
            return None
        whole = self._limit(sampler)
        return StepPlan(trainer.accumulate_grad_batches, whole - sampler.batches_left(sampler.epoch), whole, counts)

    def teardown(self, stage: str) -> None:
        """Forget the position of a resumed run: another fit starts from the beginning."""
        if stage == "fit":
            self._resumed = (0, 0)

    @property
    def eval_batch_size(self) -> int:
        """Samples per process and step in evaluation; batch_size may change after the module was made."""
        return self._eval_batch_size or self.batch_size

    def whole(self, dataset: BatchDataset) -> DataLoader[Any]:
        """All samples of an evaluation data set, in order, on this process alone."""
        return self._eval_loader(dataset, {"rank": 0, "world_size": 1})

    def _eval_loader(
        self, dataset: BatchDataset, place: dict[str, int] | None = None, batch_size: int | None = None
    ) -> DataLoader[Any]:
        size = batch_size or self.eval_batch_size
        sampler = EvalSampler(len(dataset), size, **(place or self._place()))
        return self._loader(dataset if all(sampler.batches) else WithEmptyBatches(dataset), sampler)

    def samples_of_run(self, size: int) -> float:
        """The samples of the whole run, if an epoch has ``size``; infinite without an end."""
        trainer = self.trainer
        if trainer is None:
            return math.inf
        epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
        steps = math.inf if trainer.max_steps == -1 else float(trainer.max_steps)
        return min(epochs * size, steps * self._step_size * trainer.accumulate_grad_batches)

    @property
    def _step_size(self) -> int:
        return self.batch_size * self._place()["world_size"]

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    @property
    def _most_workers(self) -> int:
        """The largest number of readers: those asked for, or each process's part of this machine's processors."""
        if self.hparams["num_workers"] is not None or self.trainer is None:
            return self.num_workers
        return min(max(1, cpu_count() // self.trainer.num_devices), _MOST_WORKERS) if self.num_workers else 0

    @property
    def _train_size(self) -> int:
        return len(self.train_set) if hasattr(self, "train_set") else 1

    def _loader(
        self,
        dataset: BatchDataset,
        sampler: TrainSampler | EvalSampler,
        kind: Callable[..., DataLoader[Any]] = DataLoader,
    ) -> DataLoader[Any]:
        return kind(
            dataset,
            batch_sampler=sampler,
            collate_fn=identity_collate,
            num_workers=(workers := min(self.num_workers, self._most_workers)),
            persistent_workers=workers > 0,
            worker_init_fn=init_worker_signals,
            pin_memory=torch.cuda.is_available(),
            # A separate generator: creating an iterator must not advance the one that dropout uses.
            generator=torch.Generator().manual_seed(self.seed),
        )
