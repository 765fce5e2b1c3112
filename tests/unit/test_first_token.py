"""Leaving out what a head does not read changes neither logits nor gradients, in every family that it is done for."""

import pytest
import torch
import transformers
from transformers import AutoConfig

from pmray.training.dropout import ATTENTION, FAMILIES, Chance, make_dropout_cheap
from pmray.training.first_token import CUT_BEFORE, _last_part, first_token_only

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 40, "image_size": 32, "patch_size": 8,
}  # fmt: skip
OWN = {
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "vocab_size": 60},
    "electra": {**SIZES, "embedding_size": 16},
}


def model_of(name):
    """A tiny one with random weights of a real architecture."""
    family = getattr(transformers, name).config_class.model_type
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **OWN.get(family, SIZES))
    return getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()


def batch_of(model):
    if "pixel_values" in model.main_input_name:
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[0, 6:] = 0
    return {"input_ids": torch.randint(5, 60, (4, 9)), "attention_mask": mask}


def logits_and_gradients(model, batch):
    model.zero_grad()
    logits = model(**batch).logits
    logits.square().sum().backward()
    return logits.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("name", CUT_BEFORE)
def test_logits_and_gradients_stay(name):
    model = model_of(name)
    batch = batch_of(model)
    logits, gradients = logits_and_gradients(model, batch)
    seen = []
    with first_token_only(model):
        handle = _last_part(model).register_forward_hook(lambda part, given, made: seen.append(made.shape[1]))
        cut_logits, cut_gradients = logits_and_gradients(model, batch)
        handle.remove()
    assert seen == [1]
    torch.testing.assert_close(cut_logits, logits, atol=1e-6, rtol=1e-5)
    assert cut_gradients.keys() == gradients.keys()
    for each, expected in gradients.items():
        torch.testing.assert_close(cut_gradients[each], expected, atol=1e-6, rtol=1e-4)
    assert not _last_part(model)._forward_pre_hooks


def test_a_model_whose_head_reads_all_tokens_is_left_alone():
    config = AutoConfig.for_model("bert", **SIZES)
    model = transformers.BertForTokenClassification(config).eval()
    batch = batch_of(model)
    with first_token_only(model):
        assert model(**batch).logits.shape[:2] == (4, 9)


@pytest.mark.parametrize("name", [name for name in CUT_BEFORE if "Image" not in name])
def test_attention_with_cheap_dropout_is_the_eager_one_when_nothing_is_dropped(name):
    model = model_of(name)
    assert model.config.model_type in FAMILIES
    batch = batch_of(model)
    expected = model(**batch).logits
    chance = Chance()
    put_back = make_dropout_cheap(model, chance)
    assert model.config._attn_implementation == ATTENTION
    torch.testing.assert_close(model.eval()(**batch).logits, expected)
    model.train()
    chance.begin(0)
    dropped = model(**batch).logits
    assert not torch.allclose(dropped, expected, atol=1e-4)
    chance.begin(0)
    assert torch.equal(model(**batch).logits, dropped)
    put_back()
    assert model.config._attn_implementation == "eager"
    assert torch.equal(model.eval()(**batch).logits, expected)
