"""SLURM: job scripts, the tasks of job arrays, and the queue's commands."""

from cnnlab.cluster.arrays import ArrayTask, fold_tasks, seed_tasks, sweep_tasks
from cnnlab.cluster.queue import active_jobs, is_available, job_states, submit
from cnnlab.cluster.script import REQUEUE_STATUS, WARNING_SECONDS, Job, parse_minutes, render

__all__ = [
    "REQUEUE_STATUS",
    "WARNING_SECONDS",
    "ArrayTask",
    "Job",
    "active_jobs",
    "fold_tasks",
    "is_available",
    "job_states",
    "parse_minutes",
    "render",
    "seed_tasks",
    "submit",
    "sweep_tasks",
]
