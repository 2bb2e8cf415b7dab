"""Where a run's numbers, pictures and tables go: metrics.csv always, and W&B or TensorBoard beside it."""

from cnnlab.loggers.in_run import InRun, TensorBoard, Wandb
from cnnlab.loggers.media import Row, write_metrics, write_picture, write_table
from cnnlab.loggers.metrics_csv import MetricsCsv

__all__ = ["InRun", "MetricsCsv", "Row", "TensorBoard", "Wandb", "write_metrics", "write_picture", "write_table"]
