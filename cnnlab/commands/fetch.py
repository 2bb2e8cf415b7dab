"""cnnlab fetch."""

from __future__ import annotations

from pathlib import Path

from cnnlab.commands.arguments import take_option
from cnnlab.commands.loading import load_config
from cnnlab.commands.messages import say
from cnnlab.models.factory import fetch_weights
from cnnlab.models.weights import FOLDER_VARIABLE, prefetched_folder
from cnnlab.tasks import VisionTask

_USAGE = f"""\
usage: cnnlab fetch --config C [OPTIONS OF fit] [--to DIR]

Brings what a configuration needs from the internet: pretrained weights (a teacher's too), into DIR (by default
${FOLDER_VARIABLE}, else ~/.cache/cnnlab/weights), and the data set, where its class can download it. A machine
without internet finds the weights in the same folder, or with --model.weights DIR."""


def fetch(command: str, arguments: list[str]) -> None:
    """Download weights and data.

    Raises:
        InputError: If something cannot be downloaded.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return
    folder, rest = take_option("--to", arguments)
    task, data, _ = load_config(rest)
    wanted = task.fetched_networks() if isinstance(task, VisionTask) else {}
    networks = [name for name, weights in wanted.values() if weights == "pretrained"]
    for name in networks:
        say(f"weights  {fetch_weights(name, Path(folder) if folder else prefetched_folder())}")
    if not networks:
        say("weights  none are asked for from a hub")
    data.prepare_data()
    say("data     ready")
