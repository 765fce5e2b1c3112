"""Steps of touched rows alone end where AdamW's steps of the whole table end."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pmray.spec import Recipe
from pmray.training.embedding_rows import lone_table
from pmray.training.optimizer import Optimizer
from tests.tiny import tiny_model


class Bag(nn.Module):
    """A table whose gradients do not depend on it, so that small differences stay small."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(60, 8, padding_idx=0), nn.Linear(8, 3)

    def get_input_embeddings(self):
        return self.table


def train(model, optimizer, steps, seed=0):
    """Take steps on ids of which few come often and most seldom or never."""
    model.train()
    draw = np.random.default_rng(seed)
    for number in range(steps):
        for _ in range(2):  # micro-batches
            ids = torch.tensor(np.minimum(49, draw.zipf(1.3, (4, 5)) - 1))
            given = torch.tensor(draw.normal(size=(4, 5, 8)), dtype=model.table.weight.dtype)
            (model.table(ids) * given).sum().backward()
            optimizer.collect()
        optimizer.step(1 - number / steps, clip=1.0)


def pair(dtype=torch.float32):
    torch.manual_seed(0)
    dense = Bag().to(dtype)
    recipe = Recipe(lr=1e-2, weight_decay=0.1)
    alone = copy.deepcopy(dense)
    return (dense, Optimizer(dense, recipe)), (alone, Optimizer(alone, recipe, rows_alone=True))


def table_of(optimizer):
    return next(one for one in optimizer.masters if one.shape == (60, 8)).detach()


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 5e-5), (torch.bfloat16, 5e-3)])
def test_touched_rows_alone_end_where_the_whole_table_does(dtype, near):
    (dense, expected), (alone, optimizer) = pair(dtype)
    before = table_of(expected).clone()
    train(dense, expected, 300)
    train(alone, optimizer, 300)
    optimizer.flush()
    moved = (table_of(expected) - before).abs().mean()
    assert moved > 0.03
    assert (table_of(optimizer) - table_of(expected)).abs().max() < near
    # Rows of tokens that never came have decayed as in AdamW.
    assert torch.allclose(table_of(optimizer)[50:], table_of(expected)[50:], rtol=1e-5)
    assert torch.equal(alone.table.weight, table_of(optimizer).to(dtype))


def test_rows_that_were_not_flushed_are_behind():
    """Else the test above would say nothing."""
    (dense, expected), (alone, optimizer) = pair()
    train(dense, expected, 50)
    train(alone, optimizer, 50)
    assert (table_of(optimizer) - table_of(expected)).abs().max() > 1e-3


@pytest.mark.parametrize("one_goes_on", [True, False], ids=["one worker", "several workers"])
def test_a_state_goes_on_with_one_worker_or_several(one_goes_on):
    (dense, expected), (alone, optimizer) = pair()
    train(dense, expected, 40)
    train(alone, optimizer, 40)
    again = Bag()
    again.load_state_dict(alone.state_dict())
    later = Optimizer(again, Recipe(lr=1e-2, weight_decay=0.1), rows_alone=one_goes_on)
    later.load(copy.deepcopy(optimizer.state()))
    train(again, later, 40, seed=1)
    train(dense, expected, 40, seed=1)
    later.flush()
    assert (table_of(later) - table_of(expected)).abs().max() < 5e-5


def test_a_state_of_several_workers_goes_on_with_one():
    (dense, expected), _ = pair()
    train(dense, expected, 40)
    again = copy.deepcopy(dense)
    later = Optimizer(again, Recipe(lr=1e-2, weight_decay=0.1), rows_alone=True)
    later.load(copy.deepcopy(expected.state()))
    train(again, later, 40, seed=1)
    train(dense, expected, 40, seed=1)
    later.flush()
    assert (table_of(later) - table_of(expected)).abs().max() < 5e-5


def test_tables_that_others_use_or_that_are_frozen_are_left_alone(tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    tied = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "gpt2", "gpt2"))
    assert lone_table(tied) is None
    bert = AutoModelForSequenceClassification.from_pretrained(tiny_model(tmp_path / "bert"))
    assert lone_table(bert) is bert.bert.embeddings.word_embeddings
    bert.bert.embeddings.word_embeddings.requires_grad_(False)
    assert lone_table(bert) is None
    assert lone_table(nn.Linear(2, 2)) is None
