"""Loggers of a run's metrics, images and tables: metrics.csv always, W&B and TensorBoard on request."""

from cnnlab.loggers.media import Row, announce, write_marked, write_metrics, write_picture, write_table
from cnnlab.loggers.metrics_csv import MetricsCsv
from cnnlab.loggers.run_logger import RunLogger, TensorBoard, Wandb

__all__ = [
    "MetricsCsv",
    "Row",
    "RunLogger",
    "TensorBoard",
    "Wandb",
    "announce",
    "write_marked",
    "write_metrics",
    "write_picture",
    "write_table",
]
