"""The points of a W&B sweep file, drawn without W&B's server."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cnnlab.errors import InputError, nearest
from cnnlab.yaml_text import dump_yaml, load_yaml

_KEYS = ("value", "values", "probabilities", "min", "max", "distribution", "q", "mu", "sigma", "a", "b", "parameters")


def sweep_points(file: Path, count: int | None, most: int) -> list[dict[str, str]]:
    """Return the points of a sweep: each parameter's value as text for the command line, by its dotted name.

    A grid gives all of its points. Other methods give random points, since bayes needs W&B's server.

    Args:
        file: A W&B sweep.
        count: Number of random points; the file's run_cap if None.
        most: The number of points that is allowed.

    Raises:
        InputError: If the file is not a sweep, if a parameter cannot be sampled, or if there are too many points.
    """
    try:
        sweep = load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--sweep {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--sweep {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(sweep, dict) or not isinstance(sweep.get("parameters"), dict) or not sweep["parameters"]:
        raise InputError(f"--sweep {file} is not a W&B sweep: expected YAML with parameters")
    method = sweep.get("method", "random")
    if method not in (methods := ("grid", "random", "bayes")):
        raise InputError(f"--sweep {file}: method is {method!r}: {nearest(str(method), methods)}")
    parameters = {
        name: _Parameter(f"--sweep {file}: {name}", space) for name, space in _flat(file, sweep["parameters"]).items()
    }
    if method == "grid":
        if count is not None:
            raise InputError(f"--count is for random points, and --sweep {file} is a grid, which has all: leave it out")
        choices = [parameter.grid() for parameter in parameters.values()]
        count = math.prod(map(len, choices))
        _check_count(f"--sweep {file} has {count:,} points", count, most)
        drawn = list(itertools.product(*choices))
    else:
        count = sweep.get("run_cap") if count is None else count
        if count is None:
            raise InputError(f"--sweep {file} has no run_cap: give the number of points with --count")
        if not isinstance(count, int) or count < 1:
            raise InputError(f"--sweep {file}: run_cap is {count!r}, expected a number, 1 or more")
        _check_count(f"--sweep {file}: {count:,} points are wanted", count, most)
        generator = random.Random(str(sorted(sweep.items(), key=str)))
        drawn = [tuple(parameter.draw(generator) for parameter in parameters.values()) for _ in range(count)]
    return [dict(zip(parameters, map(_text, point), strict=True)) for point in drawn]


def _check_count(what: str, count: int, most: int) -> None:
    if count > most:
        raise InputError(f"{what}, and a job array may have {most:,} tasks at most: choose fewer values or points")


def _flat(file: Path, parameters: Mapping[Any, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """The parameters by their dotted names, without the levels called "parameters" of nested ones."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, space in parameters.items():
        name = f"{prefix}{key}"
        if not isinstance(space, dict):
            raise InputError(f"--sweep {file}: {name} is {space!r}, expected value, values, or min and max")
        if unknown := [str(given) for given in space if given not in _KEYS]:
            raise InputError(f"--sweep {file}: {name} has no key {unknown[0]!r}: {nearest(unknown[0], _KEYS)}")
        if "parameters" in space:
            if not isinstance(space["parameters"], dict) or len(space) > 1:
                raise InputError(
                    f"--sweep {file}: {name}.parameters: expected nested parameters, and nothing beside them"
                )
            found |= _flat(file, space["parameters"], f"{name}.")
        else:
            found[name] = space
    return found


class _Parameter:
    """How a parameter's values are chosen, as W&B defines it.

    Args:
        title: For messages.
        space: Its entries in the file.

    Raises:
        InputError: If the entries do not define a distribution.
    """

    def __init__(self, title: str, space: Mapping[str, Any]) -> None:
        self.title = title
        self.space = space
        kinds: dict[str, Callable[[random.Random], Any]] = {
            "constant": lambda generator: self.choices[0],
            "categorical": lambda generator: generator.choice(self.choices),
            "categorical_w_probabilities": lambda generator: generator.choices(self.choices, self.weights)[0],
            "int_uniform": lambda generator: generator.randint(int(self.low), int(self.high)),
            "uniform": lambda generator: generator.uniform(self.low, self.high),
            "log_uniform": lambda generator: math.exp(generator.uniform(self.low, self.high)),
            "log_uniform_values": lambda generator: math.exp(
                generator.uniform(math.log(self.low), math.log(self.high))
            ),
            "inv_log_uniform_values": lambda generator: 1 / generator.uniform(1 / self.high, 1 / self.low),
            "normal": lambda generator: generator.gauss(self.number("mu", 0), self.number("sigma", 1)),
            "log_normal": lambda generator: generator.lognormvariate(self.number("mu", 0), self.number("sigma", 1)),
            "beta": lambda generator: generator.betavariate(self.number("a"), self.number("b")),
        }
        kind = self._kind()
        self.step = self.number("q", 1) if kind.startswith("q_") else None
        self.kind = kind.removeprefix("q_")
        if self.kind not in kinds:
            raise InputError(f"{title}: there is no distribution {kind!r}: {nearest(kind, kinds)}")
        self._draw = kinds[self.kind]
        self._check()

    def draw(self, generator: random.Random) -> Any:
        """A random value."""
        value = self._draw(generator)
        return value if self.step is None else round(value / self.step) * self.step

    def grid(self) -> list[Any]:
        """All values."""
        if self.kind == "int_uniform":
            if self.high - self.low > 1e6:
                raise InputError(f"{self.title} has {self.high - self.low:,.0f} values, too many for a grid")
            return list(range(int(self.low), int(self.high) + 1))
        if "value" not in self.space and "values" not in self.space:
            raise InputError(f"{self.title} has no values, which a grid needs (or set method: random)")
        return self.choices

    def number(self, name: str, default: float | None = None) -> float:
        """An entry as a number; YAML reads 1e-4 as text."""
        value = self.space.get(name, default)
        try:
            number = float("" if isinstance(value, bool) or value is None else value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{self.title}: {name} is {value!r}, expected a number")
        return number

    def _kind(self) -> str:
        space = self.space
        if "value" in space:
            return "constant"
        if "values" in space:
            return "categorical_w_probabilities" if "probabilities" in space else "categorical"
        if (named := space.get("distribution")) is not None:
            return str(named)
        if "min" not in space or "max" not in space:
            raise InputError(f"{self.title}: expected value, values, or min and max")
        return "int_uniform" if all(type(space[name]) is int for name in ("min", "max")) else "uniform"

    def _check(self) -> None:
        """Read the entries, and check them."""
        space, title = self.space, self.title
        if self.kind in ("constant", "categorical", "categorical_w_probabilities"):
            if "value" not in space and (not isinstance(space.get("values"), list) or not space["values"]):
                raise InputError(f"{title}: values is {space.get('values')!r}, expected a list of one or more values")
            self.choices = [space["value"]] if "value" in space else space["values"]
            if self.kind == "categorical_w_probabilities":
                self.weights = self._probabilities(len(self.choices))
            return
        if self.kind in ("normal", "log_normal", "beta"):
            for name in ("a", "b") if self.kind == "beta" else ("sigma",):
                if not self.number(name, None if self.kind == "beta" else 1) > 0:
                    raise InputError(f"{title}: {name} is {space[name]!r}, expected above 0")
            return
        self.low, self.high = self.number("min"), self.number("max")
        if self.low > self.high:
            raise InputError(f"{title}: min is {space['min']}, above max, which is {space['max']}")
        if self.kind in ("log_uniform_values", "inv_log_uniform_values") and self.low <= 0:
            raise InputError(f"{title}: min is {space['min']}, and a logarithm needs values above 0")
        if self.kind == "int_uniform" and not (self.low.is_integer() and self.high.is_integer()):
            raise InputError(f"{title}: min and max are {space['min']} and {space['max']}, expected whole numbers")
        if self.step is not None and not self.step > 0:
            raise InputError(f"{title}: q is {space['q']}, expected above 0")

    def _probabilities(self, count: int) -> list[float]:
        given = self.space["probabilities"]
        numbers = [value for value in given if isinstance(value, int | float)] if isinstance(given, list) else []
        if len(numbers) != count or len(given) != count or min(numbers) < 0 or abs(sum(numbers) - 1) > 1e-6:
            raise InputError(f"{self.title}: probabilities are {given!r}, expected {count} numbers that sum to 1")
        return numbers


def _text(value: Any) -> str:
    """Format a value for the command line."""
    if isinstance(value, float):
        short = f"{value:.6g}"
        return short if math.isclose(float(short), value, rel_tol=1e-5) else repr(value)
    return value if isinstance(value, str) else dump_yaml(value, one_line=True)
