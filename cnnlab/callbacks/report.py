"""report.html, after each test."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from cnnlab.callbacks.tables import results_of
from cnnlab.report import write_report
from cnnlab.run import Run


class Report(Callback):
    """Writes report.html into the run's folder at the end of a test, on the first process."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, after all other files have been written."""
        run = Run(Path(trainer.default_root_dir))
        # A test on other data has its own folder, and says nothing about the run itself.
        if trainer.is_global_zero and results_of(trainer) == run:
            write_report([run], run.report)
