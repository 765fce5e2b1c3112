"""Drift of inputs, predictions and confidence; and what is taken out of kept inputs."""

import numpy as np
import pytest

from pmray.live.drift import Profile, confidence_of, drift
from pmray.live.records import hash_of, texts_in, words_of
from pmray.live.redaction import redact, redact_row


def some(rows=500, seed=0, **more):
    rng = np.random.default_rng(seed)
    made = {
        "lengths": rng.poisson(40, rows),
        "words": np.array([words_of([f"a{n}" for n in rng.integers(200, size=10)]) for _ in range(rows)]),
        "predictions": rng.choice(["spam", "ham"], rows, p=[0.3, 0.7]).tolist(),
        "confidence": rng.beta(8, 2, rows),
    }
    return Profile(**{**made, **more})


def test_nothing_drifts_between_samples_of_the_same():
    found = drift(some(), some(seed=1))
    assert [one.what for one in found] == ["length", "words", "predictions", "confidence"]
    assert not any(one.drifted for one in found)


@pytest.mark.parametrize(
    ("what", "changed", "detail"),
    [
        ("length", {"lengths": np.random.default_rng(2).poisson(50, 500)}, ""),
        ("predictions", {"predictions": ["spam"] * 350 + ["eggs"] * 150}, "ham"),
        ("confidence", {"confidence": np.random.default_rng(2).beta(4, 2, 500)}, ""),
        ("words", {"words": np.array([words_of([f"b{n % 40}", f"c{n % 7}"]) for n in range(500)])}, ""),
    ],
)
def test_what_has_changed_is_told_and_nothing_else(what, changed, detail):
    found = {one.what: one for one in drift(some(), some(seed=1, **changed))}
    assert [name for name, one in found.items() if one.drifted] == [what]
    assert found[what].p_value < 0.001
    assert found[what].effect >= 0.1
    assert found[what].detail == detail


def test_of_many_rows_a_change_that_is_sure_but_small_is_no_drift():
    longer = some(10_000, seed=1)
    (found,) = [one for one in drift(some(10_000), some(10_000, 1, lengths=longer.lengths + 1)) if one.what == "length"]
    assert (found.p_value < 0.001, found.drifted) == (True, False)


def test_what_one_side_does_not_know_or_has_few_rows_of_is_left_out():
    none = np.array([], np.int64)
    assert [one.what for one in drift(some(words=none), some(seed=1))] == ["length", "predictions", "confidence"]
    assert drift(some(49), some()) == []


def test_one_prediction_only_is_no_drift_against_itself():
    same = {"predictions": ["ham"] * 500}
    assert not any(one.drifted for one in drift(some(**same), some(seed=1, **same)))


def test_confidence_of_several_labels_is_that_of_every_bit():
    assert confidence_of(np.array([0.9, 0.2, 0.5])) == pytest.approx((0.9 + 0.8 + 0.5) / 3)


def test_rows_are_hashed_and_measured_without_being_kept():
    row = {"text": "Good \ud800 phone", "text_pair": "x"}
    assert hash_of(row) == hash_of(dict(reversed(row.items()))) != hash_of({"text": "Good phone"})
    assert texts_in({"words": ["a", "b"], "id": "c", "image": "aGk="}, ["words", "image", "text"]) == ["a", "b"]
    assert 0 < words_of(["\ud800 " + "word " * 5_000]) < 2**60


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail ann.b+c@mail.example.co.uk!", "mail [EMAIL]!"),
        ("card 4111-1111-1111-1111.", "card [CARD]."),
        ("no card 4111-1111-1111-1112", "no card 4111-1111-1111-1112"),
        ("amex 378282246310005", "amex [CARD]"),
        ("ssn 078-05-1120", "ssn [NATIONAL_ID]"),
        ("nino AB 12 34 56 C", "nino [NATIONAL_ID]"),
        ("dni 12345678Z", "dni [NATIONAL_ID]"),
        ("article 12345678A", "article 12345678A"),
        ("iban DE89 3704 0044 0532 0130 00", "iban [IBAN]"),
        ("call +44 (0)20 7946 0958 now", "call [PHONE] now"),
        ("call 555-123-4567", "call [PHONE]"),
        ("on 2026-11-24 at 14:30", "on 2026-11-24 at 14:30"),
        ("costs 1299.99 for 24 months", "costs 1299.99 for 24 months"),
        ("order 12345", "order 12345"),
        ("", ""),
    ],
)
def test_what_points_to_a_person_is_taken_out(text, redacted):
    assert redact(text) == redacted


def test_rows_are_redacted_also_over_several_words_and_images_left_out():
    row = {"words": ["call", "555", "123", "4567", "now"], "text": "a@b.org", "image": "aGk=", "n": 3}
    assert redact_row(row) == {"words": ["call", "[PHONE]", "now"], "text": "[EMAIL]", "n": 3}


def test_redaction_takes_no_time_on_hostile_text():
    for text in ("1" * 50_000, "1 " * 50_000, "a." * 50_000 + "@", "AB12 " * 20_000, "(" * 50_000):
        redact(text)
