"""ListedFiles: which image files there are, which split each is in, and what a run remembers of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cnnlab.data.base import VisionDataModule
from cnnlab.data.contents import ContentHashes, file_sizes
from cnnlab.data.listing import find_broken
from cnnlab.data.manifest import Recollection, read_manifest, recognize
from cnnlab.data.samples import SPLITS, Sample, SampleIndex, SampleTable, code_of, split_of
from cnnlab.data.shared import shared
from cnnlab.data.splits import select_fold, split_samples
from cnnlab.errors import InputError
from cnnlab.image_files import listed
from cnnlab.run import Run

_FEW = 10_000
"""Files that are read for their hashes at the end of a training, at least."""


class ListedFiles(VisionDataModule):
    """Image files, each with a split; the run's manifest.csv is the memory of both.

    Without split folders or a column split, a fixed split is made from the images' names (see splits.split_samples).

    Args:
        root: The folder; paths in a table are relative to it.
        csv: A table with the column path, the columns of the targets, and optionally split (train, val, test) and
            group (images of one group stay in one split). Without it, the images are listed from the folders.
        val_size: The share of the training images used for validation if no validation split is given.
        test_size: The share of all images used for testing if no split is given.
        splits: The manifest.csv of a run. Its images keep their splits, wherever they lie and whatever they are called
            now; new training images are left out. All commands use their run's manifest. Images that are not the run's
            are tested whole.
        split_seed: Decides on splits and folds; independent of the run's seed, so that runs with different seeds are
            comparable.
        folds: Divide training and validation images into this number of folds, for cross-validation.
        fold: The fold used for validation, 0..folds-1.
        on_error: What to do with files that cannot be read or do not match each other, and with images of the run that
            are gone: raise, or skip. With skip, all files are read first, and the broken ones are named and left out.
        **kwargs: See VisionDataModule.

    Raises:
        InputError: If an argument is out of range.
    """

    DIVIDING: ClassVar[tuple[str, ...]] = ("val_size", "test_size", "split_seed", "folds", "fold")

    def __init__(
        self,
        root: str,
        csv: str | None = None,
        val_size: float = 0.15,
        test_size: float = 0.15,
        splits: str | None = None,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if folds is not None and not folds >= 2:
            raise InputError(f"data.folds is {folds}, expected 2 or more")
        if folds is not None and not 0 <= fold < folds:
            raise InputError(f"data.fold is {fold}, expected 0 to {folds - 1}")
        self.root = Path(root)
        self.csv = Path(csv) if csv is not None else None
        # A run's folder may be moved, so its checkpoints do not keep this path.
        self._splits = Path(splits) if splits is not None else None
        self.hparams["splits"] = None
        self._broken: dict[str, str] | None = None
        self._said: set[str] = set()

    @abstractmethod
    def list_samples(self) -> Sequence[Sample]:
        """All images, each with its split, "" if none is given.

        Raises:
            InputError: If a folder, a table or a target is missing or wrong.
        """

    @abstractmethod
    def try_reading(self, sample: Sample) -> None:
        """Read a sample's files.

        Raises:
            ImageError: If one cannot be read, or does not match the others.
        """

    def target_columns(self, samples: SampleTable) -> dict[str, Iterable[str]]:
        """The targets of samples as text, in columns for the manifest."""
        return {}

    @cached_property
    def samples(self) -> SampleTable:
        """All images, as listed by list_samples()."""
        return SampleTable.of(self.list_samples(), self.root).mapped(shared)

    @cached_property
    def contents(self) -> ContentHashes:
        """What is known of the contents of all images, in the order of their division."""
        return ContentHashes(len(self._divided.table))

    @cached_property
    def recollection(self) -> Recollection | None:
        """What the manifest of ``splits`` says of the images; None without one.

        Raises:
            InputError: If there is no such file, or if it is not a manifest.
        """
        if self._splits is None:
            return None
        return recognize(self.samples, read_manifest(self._splits), by_name=self.results_source is None)

    @property
    def _remembers(self) -> bool:
        """Whether the manifest divides the images."""
        known = self.recollection
        return known is not None and (known.is_of_the_run or not self._is("fit"))

    @cached_property
    def _divided(self) -> SampleIndex:
        options, known = self.hparams, self.recollection
        if known is not None and self._remembers:
            return SampleIndex(known.with_splits())
        listing = split_samples(
            SampleIndex(self.samples), options["val_size"], options["test_size"], options["split_seed"]
        )
        if options["folds"] is None:
            return listing
        start = 0.0 if self.samples.splits.any() else options["test_size"]
        return select_fold(listing, options["folds"], options["fold"], options["split_seed"], start)

    @property
    def _places(self) -> npt.NDArray[np.int64]:
        """The place of each divided image among all that are listed, (N,)."""
        known = self.recollection
        return np.arange(len(self.samples)) if known is None or not self._remembers else known.order

    def _is(self, *stages: str) -> bool:
        return self.trainer is not None and self.trainer.state.fn in stages

    @property
    def listing(self) -> SampleIndex:
        """All images that can be used, each with its split."""
        if not self._broken:
            return self._divided
        return SampleIndex(self._divided.table.take(np.flatnonzero(self._usable())))

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """The rows of a split's images that can be used, among all that were divided."""
        return np.flatnonzero(self._usable() & (self._divided.table.splits == code_of(split)))

    def _usable(self) -> npt.NDArray[np.bool_]:
        """Which of the divided images can be read, as far as is known, (N,)."""
        table, broken = self._divided.table, self._broken
        if not broken:
            return np.ones(len(table), dtype=bool)
        return np.fromiter((path not in broken for path in table.paths), bool, len(table))

    def leave_out_broken(self) -> None:
        """Read all files and leave out those that cannot be read, if on_error is skip."""
        if self.hparams["on_error"] == "raise" or self._broken is not None:
            return
        samples = self._divided.samples
        self._broken = find_broken(samples, self.try_reading)
        if self._broken:
            named = "\n".join(f"  {text}" for text in self._broken.values())
            rank_zero_warn(f"{len(self._broken)} of {len(samples):,} images cannot be read and are left out:\n{named}")

    def compare_with_run(self, used: Sequence[str]) -> None:
        """Say what of the run's images is gone, changed or new.

        Raises:
            InputError: If images that are to be trained on or measured are gone, unless on_error is skip.
        """
        known = self.recollection
        if known is None:
            return
        if not known.is_of_the_run:
            if self._is("fit") and self._continues:
                raise InputError(
                    f"{self.root} has none of the run's {len(known.manifest):,} images ({self._splits}): name their "
                    "folder with --data.root, or begin a new run"
                )
            if self._is("fit"):
                rank_zero_info(f"the images of {self.root} are not those of the checkpoint's run, and are divided anew")
                return
            trained = list(self._divided.of["train"].paths.names())
            left_out = f"; {len(trained):,} that the run has seen are left out: {listed(trained)}" if trained else ""
            same = f" ({len(known.changed):,} of them have names of the run's)" if len(known.changed) else ""
            rank_zero_info(f"the images of {self.root} are not those of the run{same}{left_out}")
            return
        if gone := known.gone(used):
            total = sum(map(known.manifest.count, used))
            text = f"{len(gone):,} of the run's {total:,} images for {' and '.join(used)} are not in {self.root}"
            if self._is("fit", "validate", "test") and self.hparams["on_error"] == "raise":
                raise InputError(
                    f"{text}: {listed(gone)}; put them back, or go on without them with --data.on_error skip"
                )
            rank_zero_warn(f"{text}, and are left out: {listed(gone)}")
        for text in known.findings():
            rank_zero_warn(text)
        table = self._divided.table
        columns = {"path": table.paths.names(), **self.target_columns(table)}
        if other := known.other_targets(columns):
            rank_zero_warn(f"{len(other):,} images have other targets than in the run: {listed(other)}")
        if new := known.new():
            rank_zero_warn(f"{len(new):,} images of {self.root} are not the run's, and are left out: {listed(new)}")

    @property
    def _continues(self) -> bool:
        """Whether the run of the manifest itself goes on."""
        own = Run(Path(self.trainer.default_root_dir)).manifest if self.trainer is not None else None
        return own is not None and self._splits is not None and own.resolve() == self._splits.resolve()

    def describe_measured(self, stage: str) -> str:
        """What validate, test or predict has measured: "372 of 372 images of split test of clothing-128"."""
        split = {"validate": "val", "test": "test"}.get(stage, str(self.hparams["predict"]))
        if split not in SPLITS:
            return f"{len(self.predict_set):,} images of {split}"
        count, known = len(self.listing.of[split]), self.recollection
        total = len(self._divided.of[split])
        if known is not None and known.is_of_the_run:
            total = max(total, known.manifest.count(split))
        return f"{count:,} of {total:,} images of split {split} of {self.root.absolute().name}"

    def check(self) -> tuple[list[str], list[list[str]]]:
        """Read all files.

        Returns:
            The errors of files that cannot be read (with on_error skip); the paths of each image that is in several
            splits.
        """
        self.leave_out_broken()
        self._read_contents(np.flatnonzero(~self.contents.known()))
        return list((self._broken or {}).values()), self.copies()

    def copies(self) -> list[list[str]]:
        """The names of each image that is in several splits, as far as contents are known."""
        table = self._divided.table
        groups = self.contents.equal(np.flatnonzero(self._usable() & (table.splits > 0) & self.contents.known()))
        return [[table.paths.name(int(row)) for row in group] for group in groups if len(set(table.splits[group])) > 1]

    def manifest(self) -> list[dict[str, str]]:
        """The rows of manifest_columns()."""
        columns = self.manifest_columns()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def manifest_columns(self) -> dict[str, Iterable[str]]:
        """The columns of the manifest, each to be read once, together with the others.

        They are path, targets, split, group, bytes and sha256 ("" if not known yet), and error if an image was left
        out. If the run of the manifest goes on, its own rows, with the hashes that it has learned.
        """
        if self._continues and self.recollection is not None:
            return self.recollection.manifest.with_contents(self.contents, self.recollection.rows[self._places])
        table, broken = self._divided.table, self._broken or {}
        sizes, hashes = self.contents.columns()
        if len(table) <= _FEW:
            there = ("" if size < 0 else str(size) for size in file_sizes(table.paths).tolist())
            sizes = [own or size for own, size in zip(sizes, there, strict=True)]
        return {
            "path": table.paths.names(),
            **self.target_columns(table),
            "split": map(split_of, table.splits.tolist()),
            "group": repeat("", len(table)) if table.groups is None else table.groups,
            "bytes": sizes,
            "sha256": hashes,
            "error": (broken.get(path, "") for path in table.paths) if broken else repeat("", len(table)),
        }

    def learn_contents(self) -> None:
        """Take the hashes of the files that all processes have read, and say what they show; all processes call it."""
        if self.trainer is not None:
            on_device = self.contents.table.to(self.trainer.strategy.root_device)
            self.contents.table.copy_(self.trainer.strategy.reduce(on_device, reduce_op="max"))
        self._say_contents()

    def _say_contents(self) -> None:
        """Say what the hashes show, if it has not been said."""
        known = self.recollection
        if known is not None and (replaced := known.replaced(self.contents, self._places)):
            self._say_once(f"{len(replaced):,} images are not what they were when the run began: {listed(replaced)}")
        if copies := [" = ".join(names[:2]) for names in self.copies()]:
            self._say_once(
                f"{len(copies):,} images are in several splits, so the results are too good: {listed(copies)}"
            )

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            rank_zero_warn(text)

    def learn_the_rest(self) -> None:
        """Read the files that training has not read, for their hashes, if that takes no longer than an epoch."""
        known = self.contents.known()
        rest = np.flatnonzero(self._usable() & (self._divided.table.splits > 0) & ~known)
        if len(rest) <= max(int(known.sum()), _FEW):
            self._read_contents(rest)
            self._say_contents()

    def _read_contents(self, rows: npt.NDArray[np.int64]) -> None:
        self.contents.read(self._divided.table.paths.take(rows), rows.tolist())
