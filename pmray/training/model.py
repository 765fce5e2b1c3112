"""Find, inspect, open and save pre-trained models. safetensors only; code that comes with a model is never run."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmray import storage
from pmray.data.encode import MANIFEST, PROCESSOR_FILES, finished_folder, processor_key
from pmray.errors import CandidateUnavailable
from pmray.spec import Candidate, Decide, Recipe
from pmray.tasks.base import Objective
from pmray.training.layers import freeze, layer_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CARD = "README.md"
"""A model's card."""

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", CARD)
"""What is downloaded: configuration, weights, tokenizer and card; no pickles, no code."""

TOO_MANY_REQUESTS = 429
HUB_PATIENCE = 600.0
"""Seconds that a download waits in all when the Hub is asked too often."""

HEADS = ("lm_head.", "cls.", "classifier.", "score.", "qa_outputs.")
"""Weights of the job a model was trained for; a new head takes their place."""


@dataclass(frozen=True)
class Pretrained:
    """A candidate whose files were found and are sound."""

    candidate: Candidate
    folder: str
    revision: str
    """Commit on the Hub, or a hash of the files; part of every outcome's key."""
    family: str
    """``config.model_type``, such as ``bert`` or ``llama``."""
    parameters: int
    """Of the body, with the layers kept and without a head."""
    layer_parameters: int
    """Of the layers alone: what decides the time of a step (embeddings are only looked up)."""
    layers: int
    processor: str
    """Hash of the tokenizer's files."""
    max_positions: int | None
    """Longest input the model can take."""
    licence: str | None = None
    """As the model's card writes it, such as ``apache-2.0``; None where there is no card or none in it."""
    languages: tuple[str, ...] = ()
    """As the model's card writes them, such as ``en``."""
    shared: str = ""
    """Folder or URL that all nodes see, in which the last part of ``folder`` lies; empty where nobody put it there."""

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.candidate.name


def locate(candidate: Candidate) -> Pretrained:
    """Find a candidate's files and read what they are, without reading the weights themselves.

    Raises:
        CandidateUnavailable: Wrong name, no network, missing or damaged files, unsafe weights; says which.
    """
    folder, revision = _folder(candidate.model)
    config = _config(candidate, folder)
    shapes = _weights(candidate, folder)
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    if candidate.layers:
        if not layers or candidate.layers > layers:
            raise CandidateUnavailable(f"{candidate.model}: `layers: {candidate.layers}`, but the model has {layers}")
        layers = candidate.layers
    body = {name: size for name, size in shapes.items() if not name.startswith(HEADS)}
    kept = {name: size for name, size in body.items() if layer_of(name) < layers or not layers}
    return Pretrained(
        candidate=candidate,
        folder=str(folder),
        revision=revision or _fingerprint(folder),
        family=str(config.model_type),
        parameters=sum(kept.values()),
        layer_parameters=sum(size for name, size in kept.items() if layer_of(name) >= 0),
        layers=layers,
        processor=processor_key(folder),
        max_positions=_max_positions(config),
        **_card(folder / CARD),
    )


def check_rules(one: Pretrained, rules: Decide) -> None:
    """Hold a model against the limits of a spec that need no measurement.

    Raises:
        CandidateUnavailable: It is too large, has another licence or none, or none of the languages; says which.
    """
    model = one.candidate.model
    if rules.max_parameters and one.parameters > rules.max_parameters:
        raise CandidateUnavailable(
            f"{model}: {one.parameters / 1e6:.0f} M parameters, over decide.max_parameters = "
            f"{rules.max_parameters / 1e6:.0f} M"
        )
    if rules.licences is not None and one.licence not in rules.licences:
        told = f"its card says licence {one.licence!r}" if one.licence else "no card tells its licence"
        raise CandidateUnavailable(f"{model}: {told}, and decide.licences allows {', '.join(rules.licences)}")
    if rules.languages is not None and not set(one.languages) & set(rules.languages):
        told = f"its card names {', '.join(one.languages)}" if one.languages else "no card tells its languages"
        raise CandidateUnavailable(f"{model}: {told}, and decide.languages asks for {', '.join(rules.languages)}")


def check_processor(task: Objective, pretrained: Pretrained) -> None:
    """Open the tokenizer (or image processor) once, so that a damaged one is found before the sweep.

    Raises:
        CandidateUnavailable: It cannot be opened, or has nothing to pad with.
    """
    what = f"{pretrained.candidate.model}: no usable {task.reader}"
    # transformers makes an empty tokenizer where there are no files.
    if not any(file.name.startswith(PROCESSOR_FILES) for file in Path(pretrained.folder).iterdir()):
        raise CandidateUnavailable(f"{what} (no files in {pretrained.folder})")
    try:
        task.processor(pretrained.folder)
    except Exception as error:  # noqa: BLE001  (tokenizers raises bare Exception for a damaged file)
        raise CandidateUnavailable(f"{what} ({_one_line(error)})") from None


def on_this_node(pretrained: Pretrained) -> Pretrained:
    """Return the model with a folder that exists on this machine, fetching a Hub model once per node."""
    if pretrained.shared:
        folder = storage.fetched(pretrained.shared, Path(pretrained.folder).name) / Path(pretrained.folder).name
        return replace(pretrained, folder=str(folder))
    if Path(pretrained.folder).is_dir():
        return pretrained
    model = pretrained.candidate.model
    if _is_hub(model):
        folder, _ = _download(model.split("@")[0], pretrained.revision)
        return replace(pretrained, folder=str(folder))
    folder, _ = _folder(model)
    return replace(pretrained, folder=str(folder))


def copied(pretrained: Pretrained, cache: Path, shared: str) -> Pretrained:
    """Copy a model's files into the cache under its revision, unless they are there.

    Args:
        pretrained: What ``locate`` found.
        cache: The cache on this machine.
        shared: What other machines call it.
    """
    target = cache / f"model-{pretrained.revision}"
    if not (target / MANIFEST).is_file():
        source = Path(pretrained.folder)
        with finished_folder(target) as unfinished:
            files = sorted({file for pattern in HUB_FILES for file in source.glob(pattern)})
            for file in files:
                shutil.copyfile(file, unfinished / file.name)
            manifest = {"model": pretrained.candidate.model, "files": [file.name for file in files]}
            (unfinished / MANIFEST).write_text(json.dumps(manifest))
    return replace(pretrained, folder=str(target), shared=shared)


def open_model(pretrained: Pretrained, task: Objective, *, pad: int, recipe: Recipe | None = None) -> torch.nn.Module:
    """Open the pre-trained body in fp32 with a new head for the task, and what the recipe says set to be trained.

    The head's weights come from torch's global generator: seed it first.

    Args:
        pretrained: What ``locate`` found.
        task: Says which head.
        pad: Padding token id, for decoders that have none of their own.
        recipe: Gives dropout, what is frozen, and low-rank adapters; None leaves all as it is.

    Raises:
        TrialError: More layers are to be frozen than there are.
    """
    import torch

    config = _config(pretrained.candidate, Path(pretrained.folder))
    if pretrained.candidate.layers:
        _keep_layers(config, pretrained.candidate.layers)
    if recipe is not None and recipe.dropout is not None:
        for key, value in config.to_dict().items():
            if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
                setattr(config, key, recipe.dropout)
    # On a CPU the backward pass of sdpa takes about three times as long as that of plain products.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    with quiet_transformers():
        model = task.build(
            pretrained.folder, config=config, pad=pad, dtype=torch.float32, attn_implementation=attention
        )
    if recipe is None:
        return model
    freeze(model, embeddings=recipe.freeze_embeddings, layers=recipe.freeze_layers, body=recipe.head_only)
    return with_adapters(model, recipe) if recipe.lora_rank else model


def with_adapters(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    """Freeze the body and put low-rank adapters on all of its linear layers; the head is trained whole.

    All linear layers, as Dettmers et al. 2023 (QLoRA, section 4) found that it takes to reach full fine-tuning.

    Raises:
        CandidateUnavailable: The package ``peft`` is not installed, or the model has no linear layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise CandidateUnavailable("`lora_rank` needs the package peft: pip install 'pmray[lora]'") from None
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    body = f"{model.base_model_prefix}."
    linear = [name for name, one in model.named_modules() if name.startswith(body) and isinstance(one, Linear | Conv1D)]
    if not linear:
        raise CandidateUnavailable(f"`lora_rank`: {type(model).__name__} has no linear layer below its head")
    head = sorted({name.split(".")[0] for name, _ in model.named_parameters() if not name.startswith(body)})
    settings = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank,
        target_modules=linear,
        modules_to_save=head,
    )
    adapted: torch.nn.Module = get_peft_model(model, settings)
    return adapted


def without_adapters(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its adapters worked into the weights, so that anybody opens it; itself where it has none."""
    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        return model
    merged: torch.nn.Module = merge()
    return merged


def divide_logits(model: torch.nn.Module, labels: int, temperature: float) -> bool:
    """Divide a classifier's logits by a temperature, in the weights of its last layer; False where there is none."""
    import torch

    outputs = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one.out_features == labels]
    if not outputs:
        return False
    with torch.no_grad():
        for parameter in outputs[-1].parameters():
            parameter.div_(temperature)
    return True


def quiet_transformers() -> Any:
    """Silence the report of head weights that are new on purpose, and the weight-loading bars, for a block."""
    from contextlib import contextmanager

    @contextmanager
    def quiet() -> Any:
        from transformers.utils import logging

        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()

    return quiet()


def _card(path: Path) -> dict[str, Any]:
    """Licence and languages, where a card tells them; a card that cannot be read tells nothing."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(path.read_text(), ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    languages = data.language if isinstance(data.language, list) else [data.language] if data.language else []
    return {"licence": data.license, "languages": tuple(str(one) for one in languages)}


def _is_hub(model: str) -> bool:
    return not model.startswith("package:") and not Path(model).expanduser().is_dir() and not _looks_local(model)


def _looks_local(model: str) -> bool:
    return model.startswith((".", "/", "~", "$")) or model.count("/") > 1 or model.endswith("/")


def _folder(model: str) -> tuple[Path, str | None]:
    """Folder of a model, and its commit where it comes from the Hub."""
    from os.path import expandvars

    if model.startswith("package:"):
        package, _, inside = model.removeprefix("package:").partition("/")
        try:
            found = find_spec(package)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None or not found.submodule_search_locations:
            raise CandidateUnavailable(f"{model}: no installed package {package!r}; install it first")
        folder = Path(next(iter(found.submodule_search_locations))) / inside
        if not folder.is_dir():
            raise CandidateUnavailable(f"{model}: the package {package!r} is installed, but has no folder {inside!r}")
        return folder, None
    local = Path(expandvars(model)).expanduser()
    if local.is_dir():
        return local.absolute(), None
    if _looks_local(model):
        raise CandidateUnavailable(f"{model}: no such folder ({local.absolute()})")
    name, _, revision = model.partition("@")
    return _download(name, revision or None)


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        folder = Path(
            _waiting(partial(snapshot_download, name, revision=revision, allow_patterns=list(HUB_FILES)), name)
        )
    except GatedRepoError:
        raise CandidateUnavailable(
            f"{name}: gated on the Hub; accept its terms and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise CandidateUnavailable(f"{name}: neither a folder here nor a model on the Hub (or a private one)") from None
    except HFValidationError as error:
        raise CandidateUnavailable(f"{name}: not a Hub id ({_one_line(error)})") from None
    except (HfHubHTTPError, OSError) as error:
        reason = (
            "the Hub cannot be reached and the model is not in the local cache" if _offline(error) else _one_line(error)
        )
        raise CandidateUnavailable(f"{name}: {reason}") from None
    return folder, folder.name


def _waiting(download: Callable[[], str], name: str) -> str:
    """Download; where the Hub says that it was asked too often, wait as long as it says, or longer each time."""
    from huggingface_hub.errors import HfHubHTTPError

    waited, pause = 0.0, 5.0
    while True:
        try:
            return download()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != TOO_MANY_REQUESTS:
                raise
            told = error.response.headers.get("Retry-After", "")
            seconds = float(told) if told.isdigit() else pause
            if waited + seconds > HUB_PATIENCE:
                raise CandidateUnavailable(
                    f"{name}: the Hub has been asked too often (429), also after {waited:.0f} s of waiting; try again "
                    "later, or log in with `hf auth login`, which allows more"
                ) from None
            log.warning("%s: the Hub was asked too often (429); waiting %.0f s", name, seconds)
            time.sleep(seconds)
            waited, pause = waited + seconds, 2 * pause


def _offline(error: BaseException) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError)


def _config(candidate: Candidate, folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        raw = json.loads((folder / "config.json").read_text())
        if not isinstance(raw, dict):
            raise ValueError(f"it holds {type(raw).__name__}, not an object")
        if "auto_map" in raw and raw.get("model_type") is None:
            raise CandidateUnavailable(f"{candidate.model}: needs code of its own, which pmray does not run")
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except FileNotFoundError:
        raise CandidateUnavailable(f"{candidate.model}: no config.json in {folder}") from None
    except (ValueError, OSError, KeyError) as error:
        raise CandidateUnavailable(f"{candidate.model}: config.json is not usable ({_one_line(error)})") from None


def _weights(candidate: Candidate, folder: Path) -> dict[str, int]:
    """Number of values of every tensor, read from the files' headers; a truncated file is found here."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CandidateUnavailable(f"{candidate.model}: {index.name} is damaged ({_one_line(error)})") from None
    if not files:
        pickled = ", ".join(sorted(file.name for file in folder.glob("*.bin")))
        reason = f"only {pickled}, a pickle that could run code when opened" if pickled else f"none in {folder}"
        raise CandidateUnavailable(f"{candidate.model}: no safetensors weights ({reason})")
    sizes: dict[str, int] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dictionary)
                    sizes[name] = prod(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise CandidateUnavailable(f"{candidate.model}: {file.name} is damaged ({_one_line(error)})") from None
    return sizes


def _fingerprint(folder: Path) -> str:
    """Hash of configuration and weights."""
    hashed = sha256()
    for file in sorted(folder.iterdir()):
        if file.name == "config.json" or file.suffix == ".safetensors":
            with file.open("rb") as opened:
                while block := opened.read(1 << 22):
                    hashed.update(block)
    return hashed.hexdigest()[:16]


def _keep_layers(config: Any, layers: int) -> None:
    config.num_hidden_layers = layers
    for key, value in config.to_dict().items():
        # Some configurations list one entry a layer, such as `layer_types`.
        if key.startswith("layer_") and isinstance(value, list):
            setattr(config, key, value[:layers])


def _max_positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    # RoBERTa and its kin count positions from the padding id on: 514 positions hold 512 tokens.
    offset = (config.pad_token_id or 0) + 1 if config.model_type in {"roberta", "xlm-roberta", "camembert"} else 0
    return int(positions) - offset


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
