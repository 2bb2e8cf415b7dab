"""fit, resume, validate, test and predict: LightningCLI, with a run's folder and named slots for callbacks."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import signal
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any

from jsonargparse import set_dumper
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# Tasks and data can be given by short names ("--model Classification") once they are imported.
import cnnlab.data
import cnnlab.tasks
from cnnlab import callbacks, recipes
from cnnlab.callbacks.slots import SLOTS
from cnnlab.checkpoint import LINKED
from cnnlab.checkpoint_io import BackgroundCheckpointIO
from cnnlab.commands import COMMANDS
from cnnlab.commands.arguments import (
    CheckpointInfo,
    Plan,
    all_class_paths,
    class_paths_of,
    config_flags,
    parse_request,
    plan,
)
from cnnlab.commands.launch import check_processes, cluster_environment, explain_refusals, refuse_strategy
from cnnlab.commands.messages import differences, explain_parser_error, say, summary
from cnnlab.commands.trainer import VisionTrainer, as_list, kept_precision
from cnnlab.errors import CnnlabError, InputError, InterruptionError
from cnnlab.imports import by_path, parameters_of
from cnnlab.lock import is_held, locked
from cnnlab.loggers import MetricsCsv, RunLogger
from cnnlab.models.weights import architecture_only
from cnnlab.run import flat, global_rank
from cnnlab.strategies import spreads_weights
from cnnlab.tasks.handshake import check_kinds, introduce
from cnnlab.yaml_text import dump_yaml, load_yaml

# Also for --print_config, whose text is given to --config again.
set_dumper("yaml", dump_yaml)

_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_QUIET = (
    # In-memory data needs no workers; ImageFolder chooses its own number.
    r".*does not have many workers.*",
    # cnnlab's data modules resume in the middle of an epoch.
    r".*your dataloader is not resumable.*",
    # A resumed run continues in its own folder.
    r".*Checkpoint directory .* exists and is not empty.*",
    # Small data sets have fewer batches than log_every_n_steps; each epoch is logged anyway.
    r".*is smaller than the logging interval.*",
    # cnnlab's samplers leave no sample out.
    r".*custom batch sampler `EvalSampler`.*",
    # A checkpoint is evaluated without the callbacks that trained it.
    r".*callbacks used to create the checkpoint need to be provided.*",
    # With few images, a process may have none.
    r".*method of metric .* was called before the ``update`` method.*",
    # cnnlab combines the metrics of all processes before they are logged.
    r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",
    # On a cluster's login node; jobs are submitted with cnnlab slurm.
    r".*The `srun` command is available on your system but is not used.*",
    # Lightning 2.6 uses torch's tree specifications in a way that torch 2.15 deprecates.
    r".*treespec, LeafSpec.*",
)

_NOISY_LOGGERS = (
    *("pytorch.utilities.rank_zero", "pytorch.trainer.connectors.checkpoint_connector"),
    "fabric.utilities.rank_zero",
)
_NO_NEWS = (
    *("Tip:", "`weights_only` was not set", "to estimate number of stepping batches", "TPU available: False"),
    # VisionTrainer says which option that is.
    "torch.set_float32_matmul_precision",
)


class VisionCLI(LightningCLI):
    """LightningCLI for tasks and data of cnnlab or of the user, in a run's folder."""

    def __init__(self, plan: Plan, held: contextlib.ExitStack | None = None, **kwargs: Any) -> None:
        self.plan = plan
        self._held = contextlib.ExitStack() if held is None else held
        """What the caller releases at the end of the command."""
        self.parsers: dict[str, LightningArgumentParser] = {}
        parser = {"allow_abbrev": False, "exit_on_error": False}
        descriptions = {command: {**parser, "description": COMMANDS[command].purpose} for command in _SUBCOMMANDS}
        try:
            super().__init__(
                model_class=LightningModule,
                datamodule_class=LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                trainer_class=VisionTrainer,
                save_config_callback=None,
                seed_everything_default=0,
                # cnnlab's own samplers are already distributed, and never padded.
                # Lightning's summary lists the metrics as layers; before_fit prints the network's size instead.
                trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
                parser_kwargs={**parser, **descriptions},
                auto_configure_optimizers=False,
                # The task itself saves its hyperparameters, linked values included.
                load_from_checkpoint_support=False,
                args=plan.arguments,
                **kwargs,
            )
        except SystemExit as stop:
            # Lightning ends the process after a Ctrl-C outside training, or a second one.
            if not getattr(getattr(self, "trainer", None), "interrupted", False):
                raise
            hint = (
                f"; go on with: cnnlab resume {plan.run.folder}"
                if self.subcommand == "fit" and plan.run.last.is_file()
                else ""
            )
            raise InterruptionError(f"stopped by SIGINT at once{hint}", signal.SIGINT) from stop

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return LightningCLI's subcommands, without the option that would keep all predictions in memory."""
        commands = LightningCLI.subcommands()
        commands["predict"] |= {"return_predictions"}
        return commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callback slots, and link the settings that data give to the model."""
        self.parsers[_SUBCOMMANDS[len(self.parsers)]] = parser
        for name, slot in SLOTS.items():
            parser.add_argument(
                f"--callbacks.{name}", type=bool | slot.callback, default=slot.default, help=slot.purpose
            )
        for name in self._told_names():
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        # cnnlab removes these from the arguments itself; they are here for --help and completion.
        parser.add_argument("--run", type=str, help="the run's folder (default: runs/RECIPE-DATE-TIME)")
        parser.add_argument("--resume", choices=["never", "auto"], default="never", help="go on with an old --run")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with one-line errors."""
        try:
            self.config = parser.parse_args(self.plan.arguments)
            # Else Lightning lets the checkpoint's hyperparameters override configs and flags (see commands.arguments).
            settings = self.config[self.config.subcommand]
            self._ckpt_path, settings.ckpt_path = settings.ckpt_path, None
        except ArgumentError as error:
            for path in all_class_paths(self.plan.arguments):
                by_path(path)  # jsonargparse does not say why a class cannot be imported.
            classes = [kind.__name__ for _, kind in _own_classes()]
            raise InputError(
                explain_parser_error(str(error), self.option_names(self.plan.arguments[0]), classes)
            ) from error

    def option_names(self, command: str) -> set[str]:
        """Return all options of a command; its parser knows a class's arguments only once the class is chosen."""
        names = {*self.parsers[command].get_defaults(skip_validation=True).keys(), "print_config"}
        return names | {f"{key}.{name}" for key, kind in _own_classes() for name in parameters_of(kind)}

    def instantiate_classes(self) -> None:
        """Create data, model and trainer, with one-line errors.

        jsonargparse wraps an error in its messages about each alternative type, so the error is kept here.
        """
        to_mend: list[CnnlabError] = []

        def instantiate(class_type: type, *args: Any, **kwargs: Any) -> Any:
            try:
                return class_type(*args, **kwargs)
            except CnnlabError as error:
                to_mend.append(error)
                raise

        kinds = (LightningModule, LightningDataModule, Callback)
        # A checkpoint has weights, so no pretrained ones need to be downloaded.
        weights = contextlib.nullcontext() if self.plan.checkpoint is None else architecture_only()
        try:
            with weights:
                self.config_init = self.parser.instantiate(
                    self.config, instantiators=[(instantiate, kind, True) for kind in kinds]
                )
        except ValueError as error:
            raise (to_mend[0] if to_mend else error) from None
        self.datamodule, self.model = (self.config_init[self.subcommand].get(name) for name in ("data", "model"))
        self.trainer = self.instantiate_trainer()

    def before_instantiate_classes(self) -> None:
        """Keep user settings that the data also give; take settings that the checkpoint's run found in its data."""
        config = self.config[self.subcommand]
        config.ckpt_path = self._ckpt_path
        if config.get("data") is not None:
            check_kinds(by_path(config.data.class_path), by_path(config.model.class_path))
        kept = self.plan.checkpoint
        if kept is not None and config.get("data") is not None:
            # What the checkpoint's run found in its data (the classes, the size) is not found again.
            for name in getattr(by_path(config.data.class_path), "RESOLVED", ()):
                if config.data.init_args.get(name) is None and name in kept.data:
                    config.data.init_args[name] = kept.data[name]
        self._typed = self._typed_of_data(config)
        self._resolved = self._dump(config)
        if config.get("data") is not None:
            for name, value in list((config.data.get("init_args") or {}).items()):
                if isinstance(value, str) and value.startswith("~"):  # The shell leaves it in --data.root=~/images.
                    config.data.init_args[name] = str(Path(value).expanduser())
        if kept is not None and config.get("data") is not None and kept.manifest.is_file():
            self._keep_splits(config.data, kept)
        # The removed channels are those of the checkpoint, whatever a configuration says.
        if kept is not None and "pruned" in config.model.get("init_args", {}):
            config.model.init_args["pruned"] = kept.model.get("pruned")

    def _told_names(self) -> list[str]:
        """Return the task arguments that data may give: all that cnnlab's and the user's own data modules provide."""
        for path in class_paths_of("data", self.plan.arguments):
            with contextlib.suppress(InputError):
                by_path(path)  # Once imported, it is among the subclasses.
        names = [name for kind in _subclasses(LightningDataModule) for name in getattr(kind, "PROVIDES", ())]
        return list(dict.fromkeys([*LINKED, *names]))

    def _typed_of_data(self, config: Any) -> dict[str, Any]:
        """Return model settings by the user that the data also give: jsonargparse silently overwrites them."""
        if config.get("data") is None:
            return {}
        defaults, given = parameters_of(by_path(config.model.class_path)), config.model.get("init_args") or {}
        names = [name for name in self._told_names() if name in given and name in defaults]
        return {name: given[name] for name in names if given[name] not in (None, defaults[name].default)}

    def _keep_splits(self, data: Any, checkpoint: CheckpointInfo) -> None:
        """Let the checkpoint's run say which images are for what, wherever they lie now."""
        settings, kept = data.init_args, checkpoint.data
        if "splits" not in settings or settings.splits is not None:
            return
        settings.splits = str(checkpoint.manifest)
        if self.subcommand == "fit" and not _same_path(settings.get("root"), kept.get("root")):
            return  # If the images are others, they are divided for a new run.
        for name in getattr(by_path(data.class_path), "DIVIDING", ()):
            # Runs of older versions did not split by settings that their classes did not have.
            if name in kept and settings.get(name) != kept[name]:
                raise InputError(
                    f"data.{name} is {settings.get(name)!r}, but the run's images were divided with "
                    f"{kept.get(name)!r}, and keep their splits: leave it out, or begin a new run"
                )

    def after_instantiate_classes(self) -> None:
        """Refuse settings that contradict the data or do not fit the checkpoint; report other differences from it."""
        hparams = self.model.hparams
        introduce(self.model, self.datamodule, self._typed)
        if self.datamodule is not None:
            self.datamodule.results_source = self._results_source()
        kept = self.plan.checkpoint.model if self.plan.checkpoint is not None else {}
        for name in ("class_names", "channels", "network", "encoder", "network_args", "head", "group_norm"):
            if name in kept and name in hparams and kept[name] != hparams[name]:
                raise InputError(
                    f"model.{name} is {hparams[name]!r}, but the checkpoint's is {kept[name]!r}: "
                    "its weights would not fit"
                )
        if self.plan.checkpoint is not None and global_rank() == 0:
            # The weights that a run started from do not describe its current state.
            told = {*self._told_names(), "init_from"}
            own = {name: value for name, value in kept.items() if name not in told}
            settings = getattr(self.datamodule, "hparams", {})
            for line in differences(hparams, own, "model") + differences(settings, self.plan.checkpoint.data, "data"):
                say(line)

    def _results_source(self) -> str | None:
        """Return the source of the data to measure or predict if it is not the run's own test set; else None."""
        settings, kept = getattr(self.datamodule, "hparams", {}), self.plan.checkpoint
        if self.subcommand == "predict" and settings.get("predict", "test") != "test":
            return str(settings["predict"])
        if self.subcommand == "fit" or kept is None or "root" not in kept.data or "root" not in settings:
            return None
        changed = [name for name in ("root", "csv") if not _same_path(settings.get(name), kept.data.get(name))]
        return str(settings[changed[-1]]) if changed else None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer, with the run's folder, its callbacks and its metrics.csv."""
        config = {**self.config_init[self.subcommand].trainer}
        config["default_root_dir"] = str(self.plan.run.folder)
        plugins = [*as_list(config["plugins"]), BackgroundCheckpointIO()]
        if config["sync_batchnorm"]:
            plugins.append(callbacks.SyncNorm())
        own = next((plugin for plugin in plugins if isinstance(plugin, ClusterEnvironment)), cluster_environment())
        plugins += [own] if own is not None and own not in plugins else []
        config["plugins"] = plugins
        if config["precision"] == "auto" and self.plan.checkpoint is not None:
            config["precision"] = kept_precision(self.plan.checkpoint, plugins)
        loggers = [] if isinstance(config["logger"], bool) else as_list(config["logger"])
        if self.subcommand in ("validate", "predict"):
            # They write files, and would start an empty piece of an offline run.
            loggers = [logger for logger in loggers if not isinstance(logger, RunLogger)]
        # A trial run of some batches writes no files.
        trial = self.is_trial = bool(config["fast_dev_run"])
        fitting = self.subcommand == "fit" and not trial
        # The CSV is for the training; a test's results are in test.json.
        config["logger"] = [*([MetricsCsv(self.plan.run.metrics)] if fitting else []), *loggers] or False
        for logger in loggers:
            if isinstance(logger, RunLogger) and not trial:
                logger.attach(self.plan.run.folder)
        records = callbacks.RunRecords(self._resolved, self._recipe()) if fitting else callbacks.RunRecords()
        always: list[Callback] = [] if trial else [records]
        if fitting:
            always += [callbacks.ExactResume(), callbacks.FiniteLoss(), callbacks.AutoCompile()]
        if config["enable_progress_bar"] is not False:
            if sys.stdout.isatty():
                always.append(RichProgressBar(refresh_rate=10))
            else:
                config["enable_progress_bar"] = False
                always.append(callbacks.EpochLines())
        slots = self._slots(trial)
        config["callbacks"] = [*as_list(config["callbacks"]), *always, *slots]
        if not any(isinstance(callback, Checkpoint) for callback in config["callbacks"]):
            # Else Lightning adds its own.
            config["enable_checkpointing"] = False
        if spreads_weights(config["strategy"]):
            # Weights gathered for the sanity check under inference mode could not be trained afterwards.
            config["inference_mode"] = False
        refuse_strategy(config["strategy"])
        with explain_refusals(config, self.subcommand == "fit"):
            trainer = super().instantiate_trainer(**config)
        check_processes(trainer)
        return trainer

    def _slots(self, trial: bool = False) -> list[Callback]:
        """Return the callbacks of the slots that are on, if the command uses them."""
        given = self.config_init[self.subcommand].callbacks
        goes_on = self.plan.checkpoint is not None
        wanted = [
            (slot, given[name])
            for name, slot in SLOTS.items()
            if self.subcommand in slot.stages and (slot.in_trials or not trial) and not (slot.at_start_only and goes_on)
        ]
        return [slot.callback() if value is True else value for slot, value in wanted if value]

    def _recipe(self) -> dict[str, Any] | None:
        """Return the recipe that a new run starts from, and the changes to it by other files and flags."""
        if self.plan.checkpoint is not None or self.plan.recipe is None:
            return None
        arguments, name = self.plan.arguments, recipes.called(self.plan.recipe)
        try:
            alone = self.parser.parse_args([arguments[0], *config_flags([self.plan.recipe])])
        except ArgumentError:
            # The recipe is not complete without the other files.
            return {"name": name, "changes": None}
        before, now = (flat(load_yaml(text)) for text in (self._dump(alone[arguments[0]]), self._resolved))
        changes = {key: [before.get(key), now.get(key)] for key in {**before, **now} if before.get(key) != now.get(key)}
        return {"name": name, "changes": changes}

    def _dump(self, config: Any) -> str:
        """Return a resolved configuration as YAML, without the settings of this call only."""
        config = config.clone()
        for name in ("config", "run", "resume", "ckpt_path", "weights_only"):
            config.pop(name, None)
        text: str = self.parsers[str(self.subcommand)].dump(config)
        return text

    def before_fit(self) -> None:
        """Print the number of the network's parameters."""
        if self.trainer.is_global_zero:
            count = sum(parameter.numel() for parameter in self.model.parameters())
            name = self.model.hparams.get("network", type(self.model).__name__)
            say(f"{name}: {count:,} parameters")

    def _before_evaluation(self) -> None:
        """Hold the folder of the results, and set earlier ones of this command aside."""
        if not self.trainer.is_global_zero or self.is_trial:
            return
        command, run = str(self.subcommand), self.plan.run
        source = getattr(self.datamodule, "results_source", None)
        results = run if source is None else run.results_of(source)
        self._held.enter_context(locked(results.folder, f".{command}.lock"))
        self._held.enter_context(results.replacing(command))
        if is_held(run.folder):
            say(f"run {run.folder} is still training: these are the results of its weights as they are now")

    before_validate = before_test = before_predict = _before_evaluation

    def predict(self, **kwargs: Any) -> None:
        """Predict; predictions go to the callbacks, batch by batch, and are not kept."""
        self.trainer.predict(return_predictions=False, **kwargs)


def run_command(command: str, arguments: list[str]) -> None:
    """Run fit, resume, validate, test or predict.

    Raises:
        CnnlabError: If the input is not valid, the run cannot go on, or a signal stopped the run.
    """
    for message in _QUIET:
        warnings.filterwarnings("ignore", message)
    for name in _NOISY_LOGGERS:
        logging.getLogger(f"lightning.{name}").addFilter(_is_news)
    request = parse_request(command, arguments)
    decided = plan(request)
    try:
        with contextlib.ExitStack() as held:
            if decided.arguments[0] == "fit" and not request.asks_only and global_rank() == 0:
                # At once, before any data are read; other processes of this run belong to this one.
                held.enter_context(locked(decided.run.folder))
            cli = VisionCLI(decided, held)
    except InterruptionError as stop:
        if "SLURM_JOB_ID" in os.environ:
            # SLURM may kill the rest of a job once its first process ends: the exit status must say why.
            for signum in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(signum, signal.SIG_IGN)
        if global_rank() > 0:
            # All processes stop; only the first one prints the reason.
            raise SystemExit(stop.exit_code) from None
        raise
    except MisconfigurationException as error:
        # Lightning refuses settings by this error: the user can correct them.
        raise InputError(" ".join(str(error).split())) from error
    finally:
        decided.run.discard_if_empty()
    if cli.trainer.is_global_zero and not cli.is_trial:
        _tell(cli)


def _own_classes() -> list[tuple[str, type]]:
    """Return cnnlab's tasks and data, each with its key in a configuration."""
    rooms = (("model", vars(cnnlab.tasks)), ("data", vars(cnnlab.data)))
    bases = (LightningModule, LightningDataModule)
    own = [(key, kind) for key, names in rooms for kind in names.values() if inspect.isclass(kind)]
    return [(key, kind) for key, kind in own if issubclass(kind, bases)]


def _is_news(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _NO_NEWS)


def _tell(cli: VisionCLI) -> None:
    """Print where the files are, and the next commands."""
    run, trainer = cli.plan.run, cli.trainer
    source = getattr(cli.datamodule, "results_source", None)
    results = run if source is None else run.results_of(source)
    places = {
        "best": run.best,
        "last": run.last,
        "configuration": run.config,
        "metrics": run.metrics,
        "manifest": run.manifest,
        "environment": run.environment,
        "validation": results.validation,
        "test": results.test,
        "confusions": results.table("confusion_matrix"),
        "classes": results.table("classes"),
        "errors": results.folder / "errors",
        "predictions": results.predictions,
        **{name: results.folder / name for name in ("masks", "overlays")},
        "pictures": run.pictures,
        "onnx": run.onnx,
        "report": run.report,
    }
    stage = {"test": "test/", "validate": "val/"}.get(str(cli.subcommand), "none")
    measured = {**trainer.callback_metrics, **getattr(cli.model, "results", {})}
    rows: dict[str, object] = {
        name: f"{float(v):.6g}" for name, v in sorted(measured.items()) if name.startswith(stage)
    }
    if cli.subcommand != "fit" and results.measured.is_file():
        said = json.loads(results.measured.read_text(encoding="utf-8")).get(str(cli.subcommand))
        rows |= {} if said is None else {"measured": said}
    rows |= {name: path for name, path in places.items() if path.exists()}
    if cli.subcommand == "fit":
        if cli.plan.checkpoint is not None and trainer.global_step == cli.plan.checkpoint.step:
            say(
                f"nothing was left to train after step {trainer.global_step}: to train longer, give "
                f"--trainer.max_epochs (it was {trainer.max_epochs})"
            )
        rows["next"] = f"cnnlab test {run.folder}    cnnlab predict {run.folder}"
    summary(f"run {run.folder}", rows)


def _subclasses(kind: type) -> list[type]:
    own: list[type] = kind.__subclasses__()
    return [*own, *(inner for one in own for inner in _subclasses(one))]


def _same_path(one: Any, other: Any) -> bool:
    return one == other or (one is not None and other is not None and Path(one).resolve() == Path(other).resolve())
