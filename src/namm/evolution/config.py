"""One evolution run as one typed value, read from a file and saved with what it found.

    config = EvolutionConfig.load("mine.toml").changed("search.sigma=0.1", "stages.0.tokens=[512, 1024]")

A file is TOML, YAML or JSON. What is left out has the default given here; a preset is such a file in the package.
"""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from namm.configuration import Budgets, Lengths, Names, Section
from namm.defaults import DEFAULT_MODEL
from namm.errors import ArtefactError, ConfigurationError, NotFoundError, nearest
from namm.files import read
from namm.json_files import parsed_value, write_json
from namm.packages import package
from namm.selection import Safeguard, is_share

FORMAT_VERSION = 2
ZEROS, WARM = "zeros", "warm"


class Model(Section):
    """A model whose cache is to be managed."""

    section = "models"
    name: str = DEFAULT_MODEL
    """A name, folder, GGUF file or hub id, as `namm.models.load_model` takes it."""
    dtype: str = "auto"
    """"auto" is bfloat16 on a GPU and float32 on a CPU."""
    device: str = "auto"
    """"auto" is a GPU if there is one."""


class Memory(Section):
    """What is evolved."""

    section = "memory"
    features: str = "paper"
    """What the network sees, a name from `namm.features.FEATURE_SETS`."""
    width: int = Field(default=32, ge=1)
    """Width of the network's attention."""
    update_interval: int = Field(default=512, ge=16, multiple_of=16)  # of `spectrogram.HOP`
    """Tokens between two updates while reading. Evolve where you will deploy."""
    rehearses: Literal["queries", "model"] = "queries"
    """Who asks again, for feature sets that watch rehearsals: the layers' own queries in place, or the model."""
    window: int = Field(default=512, ge=1)
    """Queries that are held until they ask in place, a number of tokens."""
    rotated: bool | Literal["auto"] = "auto"
    """Whether these are moved on first; "auto": where a model has rotary positions."""
    competes: bool = False
    """Whether what they attended to when they were read takes part of their attention."""
    asked: Literal["held", "window"] = "held"
    """Of what they ask: of all that is held, or of the tokens of their window only; then they must compete."""
    calibrated: bool = False
    """Whether what they ask is read by what it is worth in each head of a model, see `namm.calibration`."""
    rehearsal: float = Field(default=1.0, gt=0, le=1)
    """Part of each block that the model reads again."""
    per: Literal["head", "layer", "model"] = "head"
    """How a budget is spent, see `namm.Budget`."""
    safeguard: Safeguard = 0.0
    """Part of an even split that every head keeps all the same, see `namm.Budget`."""

    @field_validator("safeguard", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if not (value == "auto" or is_share(value)):
            raise ConfigurationError('a share in [0, 1] or "auto" for memory.safeguard', repr(value), "Try 0.2.")
        return value

    @model_validator(mode="after")
    def _competing(self) -> Self:
        from namm.policies.base import Rehearsal

        Rehearsal(competes=self.competes, asked=self.asked)  # says what goes together
        return self

    @field_validator("features")
    @classmethod
    def _known(cls, name: str) -> str:
        from namm.features import FEATURE_SETS

        if name not in FEATURE_SETS:
            raise ConfigurationError("a feature set for memory.features", repr(name), nearest(name, FEATURE_SETS))
        return name


class Objective(Section):
    """What counts as good."""

    section = "objective"
    budgets: Budgets = (0.5, 0.35)
    """Shares in (0, 1) of the full cache's bytes; "own" leaves the size to the memory's own threshold."""
    score: Literal["nll", "metric"] = "nll"
    """Likelihood of the right answer, or the task's metric (the paper's); 1 is as good as forgetting nothing."""
    pressure: float = Field(default=0.0, ge=0)
    """Fitness is the score minus this times the share of bytes held."""


class WarmStart(Section):
    """A fit by gradient to what the model will attend to later."""

    section = "start.warm"
    samples: int = Field(default=8, ge=1)
    """Training samples of each task."""
    tokens: int | None = Field(default=None, ge=1)
    """Length of their text; the first length of the first stage if left out."""
    rounds: int = Field(default=2, ge=1)
    """Rounds of gathering states; those after the first come from what the fitted memory itself kept."""
    steps: int = Field(default=400, ge=1)
    """Gradient steps in each round."""
    learning_rate: float = Field(default=0.003, gt=0)
    """Of Adam."""
    question_weight: float = Field(default=1.0, ge=0)
    """How much more the question's queries count than those of the text."""
    rehearsal: bool = True
    """Whether the queries of a rehearsal count as later ones, also for a memory that does not rehearse itself."""


class Start(Section):
    """Where the search begins."""

    section = "start"
    from_: str = Field(default=ZEROS, alias="from")
    """"zeros" (the paper's), "warm" (see `start.warm`), or a saved memory: folder, `builtin:NAME` or hub id."""
    scoring: dict[str, float] = Field(default_factory=dict)
    """First weights of signals in the score, by name: {"peak": 1.0} starts at the observed maximum. Zeros otherwise."""
    bias: float = 0.0
    """Added to the bias of the score: above 0, the first candidates keep rather than forget at their own threshold."""
    statistics: int = Field(default=4, ge=1)
    """Training samples of each task that the normalisation statistics are gathered from (spec 5)."""
    warm: WarmStart = WarmStart()
    """Of "warm"."""


class Search(Section):
    """How it searches."""

    section = "search"
    strategy: Literal["full", "diagonal", "vd", "vkd"] = "full"
    """Variant of CMA-ES, see `namm.evolution.strategy`."""
    space: Literal["all", "scoring", "head", "gains", "low-rank", "random"] = "all"
    """What changes, see `namm.evolution.space`."""
    rank: int = Field(default=4, ge=1)
    """Of the space "low-rank"."""
    directions: int = Field(default=64, ge=1)
    """Of the space "random"."""
    scaled: bool = True
    """Measure sigma in units of the start's weights, matrix by matrix, where they are not zero."""
    sigma: float = Field(default=0.065, gt=0)
    """First step size."""
    population: int = Field(default=32, ge=4)
    """Candidates in a generation; half of them become parents."""
    samples: int = Field(default=16, ge=1)
    """Samples of each task for each model in a generation, the same for all candidates, shared out over lengths and
    budgets."""
    pool: int = Field(default=256, ge=1)
    """Different training samples of each task that they are drawn from."""
    ranks: bool = False
    """Compare candidates by their mean rank over samples instead of their mean score."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.samples > self.pool:
            raise ConfigurationError(
                f"search.samples <= search.pool ({self.pool})", self.samples, "Draw fewer or enlarge the pool."
            )
        return self


class Stage(Section):
    """One stage of the curriculum; it goes on where the stage before it stopped."""

    section = "stages"
    name: str
    """For the log."""
    tasks: Names
    """Names of tasks, suites or JSONL files."""
    tokens: Lengths = (1024,)
    """Lengths of text of generated tasks."""
    generations: int = Field(ge=1)
    """Generations of this stage; as an option, of the last stage."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, suites taken apart, each once."""
        from namm.tasks import SUITES

        names = [n for task in self.tasks for n in SUITES.get(task, (task,))]
        return tuple(dict.fromkeys(names))


class Validation(Section):
    """On what, and how often, the search is checked."""

    section = "validation"
    samples: int = Field(default=8, ge=1)
    """Validation samples of each task, the same every time."""
    every: int = Field(default=5, ge=1)
    """Generations between two validations."""


class Workers(Section):
    """Where candidates are measured. Not part of what a run is: any workers give the same results."""

    section = "workers"
    count: int = Field(default=1, ge=1)
    """Worker processes; 1 measures in this process."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of each. Results are the same for any count, not for any number of threads."""
    keep: float = Field(default=2.0, ge=0)
    """GiB of texts that a worker has read and keeps for later generations; they are read again otherwise."""
    ray: str | None = None
    """Address of a Ray cluster: "auto", "HOST:PORT", "ray://HOST:PORT", or "local" to start one here."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    """What Ray reserves for a worker."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """What Ray reserves for a worker; 0.5 puts two workers on a GPU."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds within which the Ray address must answer."""


class EvolutionConfig(Section):
    """One run, complete: the same values give the same memory on the same machine."""

    format: Literal[2] = 2
    """Version of this layout. 1 had [model] in place of [[models]], and memories that rehearse had memory.rehearses =
    "model"; with that changed it is 2."""
    seed: int = Field(default=0, ge=0)
    """The same seed gives the same run."""
    data: str | None = None
    """Folder of the JSONL files that tasks name, and of downloaded benchmarks; without it these come from the hub."""
    models: tuple[Model, ...] = Field(default=(Model(),), min_length=1)
    """Fitness is the mean over them."""
    memory: Memory = Memory()
    objective: Objective = Objective()
    start: Start = Start()
    search: Search = Search()
    stages: tuple[Stage, ...] = Field(
        default=(Stage(name="embedded", tasks=("embedded",), generations=50),), min_length=1
    )
    validation: Validation = Validation()
    workers: Workers = Workers()

    @field_validator("models")
    @classmethod
    def _different(cls, models: tuple[Model, ...]) -> tuple[Model, ...]:
        names = [model.name for model in models]
        if len(set(names)) < len(names):
            raise ConfigurationError("models that differ", ", ".join(names), "Give each model once.")
        return models

    @property
    def generations(self) -> int:
        """Of all stages."""
        return sum(stage.generations for stage in self.stages)

    # -- files -------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> EvolutionConfig:
        """Read a `.toml`, `.yaml`, `.yml` or `.json` file. A start at a folder is looked for beside the file first.

        Raises:
            NotFoundError: there is no such file.
            ConfigurationError: it cannot be read, or a value is wrong.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError("a configuration file", str(path), f"Check the path, or take a preset: {_names()}.")
        values = _parse(path)
        start = values.get("start")
        if isinstance(start, dict) and isinstance(start.get("from"), str) and start["from"] not in (ZEROS, WARM):
            beside = path.parent / start["from"]
            if beside.is_dir():
                start["from"] = str(beside.resolve())
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> EvolutionConfig:
        """A configuration that comes with the package."""
        found = presets()
        if name not in found:
            raise NotFoundError("a preset", repr(name), nearest(name, found))
        return cls.load(found[name])

    def save(self, path: Path) -> None:
        """Write everything, defaults included, as JSON."""
        write_json(path, self.model_dump(mode="json", by_alias=True), indent=2)

    def changed(self, *settings: str) -> EvolutionConfig:
        """With other values: `changed("search.sigma=0.1", "stages.0.generations=20", "memory.features=extended")`.

        A value is read as JSON where it is JSON, else as text.

        Raises:
            ConfigurationError: a setting is not NAME=VALUE, or names nothing.
        """
        values = self.model_dump(mode="json", by_alias=True)
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ConfigurationError(
                    "a setting NAME=VALUE", repr(setting), "For example search.sigma=0.1 or stages.0.generations=20."
                )
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            _put(values, name.strip(), value)
        return EvolutionConfig(**values)

    def identity(self) -> dict[str, Any]:
        """What makes this run what it is, as JSON: everything but the workers."""
        values = self.model_dump(mode="json", by_alias=True)
        del values["workers"]
        values["threads"] = self.workers.threads  # rounding depends on it
        return values


def presets() -> dict[str, Path]:
    """Configurations that come with the package: name to file."""
    folder = Path(str(files("namm.evolution"))) / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _names() -> str:
    return ", ".join(presets())


def _parse(path: Path) -> dict[str, Any]:
    again = "Mend the file."
    kind = path.suffix.removeprefix(".").upper().replace("YML", "YAML")
    if kind not in ("TOML", "YAML", "JSON"):
        raise ConfigurationError("a .toml, .yaml or .json file", str(path), "Rename it to what it is.")
    try:
        values = _values(kind, read(path, again), str(path))
    except ArtefactError as error:  # a file of the user's own
        raise ConfigurationError(error.expected, error.got, again) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{kind} in {path}", " ".join(str(error).split()), again) from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"names and values in {path}", type(values).__name__, "See docs/evolve.md.")
    return values


def _values(kind: str, data: bytes, name: str) -> Any:
    if kind == "JSON":
        return parsed_value(data, name, "")
    if kind == "TOML":
        return tomllib.loads(data.decode())
    yaml = package("yaml", "evolve")
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _put(values: Any, name: str, value: Any) -> None:
    """Set the place called `a.b.0.c` in nested dictionaries and lists."""
    *path, last = name.split(".")
    for key in [*path, last]:
        known = list(values) if isinstance(values, dict) else [str(i) for i in range(len(values or ()))]
        if not isinstance(values, dict | list) or key not in known:
            raise ConfigurationError("the name of a setting", repr(name), nearest(key, known))
        at: Any = int(key) if isinstance(values, list) else key
        if key is last:
            values[at] = value
        else:
            values = values[at]
