"""SLURM: a job's script, the tasks of a job array, and what the queue says of them."""

from cnnlab.cluster.arrays import ArrayTask, folds, of_sweep, seeds
from cnnlab.cluster.queue import is_here, job_states, submit, unfinished
from cnnlab.cluster.script import LEAD, REQUEUE, Job, minutes, render

__all__ = [
    "LEAD",
    "REQUEUE",
    "ArrayTask",
    "Job",
    "folds",
    "is_here",
    "job_states",
    "minutes",
    "of_sweep",
    "render",
    "seeds",
    "submit",
    "unfinished",
]
