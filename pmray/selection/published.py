"""What the Hub tells of a model before it is downloaded: enough to leave out what the rules of a spec forbid anyway."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pmray.errors import CandidateUnavailable
from pmray.spec import Candidate, Decide

WITH_HEAD = 1.25
"""A model's files may hold a head that does not count; one this many times over the limit is too large without it."""

PATIENCE = 10.0
"""Seconds to wait for the Hub; what it does not tell by then is found out after the download."""


@dataclass(frozen=True)
class Published:
    """A model as the Hub describes it; None where it does not say."""

    parameters: int | None
    """Of all its safetensors files, heads included."""
    licence: str | None
    languages: tuple[str, ...]
    changed: datetime | None
    """When its files last changed."""


def published(candidate: Candidate) -> Published | None:
    """Ask the Hub about a candidate; None for folders, packages, models in the local cache, and without a network."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    name, _, revision = candidate.model.partition("@")
    if name.startswith((".", "/", "~", "$", "package:")) or Path(name).is_dir() or name.count("/") > 1:
        return None
    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str):
            return None
        found = HfApi().model_info(name, revision=revision or None, timeout=PATIENCE)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError):
        # Whether it can be had at all is told when it is fetched.
        return None
    card = found.card_data
    languages = (card.language if card else None) or []
    return Published(
        parameters=found.safetensors.total if found.safetensors else None,
        licence=card.license if card else None,
        languages=tuple(languages) if isinstance(languages, list) else (str(languages),),
        changed=found.last_modified,
    )


def refuse_before_download(candidate: Candidate, rules: Decide) -> None:
    """Refuse a model of the Hub that the rules leave out whatever its files hold; what is not told is no reason.

    Raises:
        CandidateUnavailable: It is far too large, or has another licence or other languages; says which.
    """
    if rules.max_parameters is None and rules.licences is None and rules.languages is None:
        return
    told = published(candidate)
    if told is None:
        return
    since = f" (last changed {told.changed:%Y-%m-%d})" if told.changed else ""
    limit = rules.max_parameters
    # Of a model that is cut, only a part of the parameters is used.
    if limit and told.parameters and not candidate.layers and told.parameters > WITH_HEAD * limit:
        raise CandidateUnavailable(
            f"{candidate.model}: {told.parameters / 1e6:.0f} M parameters on the Hub{since}, over "
            f"decide.max_parameters = {limit / 1e6:.0f} M; not downloaded"
        )
    if rules.licences is not None and told.licence and told.licence not in rules.licences:
        raise CandidateUnavailable(
            f"{candidate.model}: its card on the Hub{since} says licence {told.licence!r}, and decide.licences allows "
            f"{', '.join(rules.licences)}; not downloaded"
        )
    if rules.languages is not None and told.languages and not set(told.languages) & set(rules.languages):
        raise CandidateUnavailable(
            f"{candidate.model}: its card on the Hub{since} names {', '.join(told.languages)}, and decide.languages "
            f"asks for {', '.join(rules.languages)}; not downloaded"
        )
