"""Whatever is sent to an endpoint, it answers, never with a 5xx: cases from its OpenAPI document, and raw bodies.

``PMRAY_FUZZ`` sets how many cases are tried for each route (default 25; 400 are 2,000 in all).
"""

import json
import os
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serving import OneModel, asked, served_app
from tests.tiny import tiny_bundle

CASES = int(os.environ.get("PMRAY_FUZZ", "25"))
QUIET = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
KINDS = ["application/json", "text/csv", "application/vnd.apache.parquet", "application/x+json", "text/plain", ""]
GOOD = [
    json.dumps({"rows": [{"text": "good phone", "label": "positive"}, {"text": "bad"}]}).encode(),
    b"text,label\ngood phone,positive\nbad case,negative\n",
    b"PAR1\x15\x00\x15\x00PAR1",
]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return served_app(OneModel(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")))


def test_no_case_of_the_openapi_document_is_a_failure_of_the_server(app):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @QUIET
        @given(case=operation.as_strategy())
        def run(case):
            response = case.call()
            seen[response.status_code] += 1
            assert response.status_code < 500, response.text
            case.validate_response(
                response,
                checks=[
                    schemathesis.checks.not_a_server_error,
                    schemathesis.specs.openapi.checks.status_code_conformance,
                    schemathesis.specs.openapi.checks.content_type_conformance,
                    schemathesis.specs.openapi.checks.response_schema_conformance,
                ],
            )

        run()
    assert seen[200] > len(list(schema.get_all_operations()))
    if CASES >= 400:
        assert sum(seen.values()) >= 2_000, seen


def cut_and_changed(draw):
    """A good body with a few bytes cut out, doubled or changed."""
    body = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(body) - 1)))
        change = draw(st.sampled_from(["cut", "double", "change"]))
        piece = body[place : place + draw(st.integers(1, 8))]
        if change == "cut":
            del body[place : place + len(piece)]
        elif change == "double":
            body[place:place] = piece
        else:
            body[place : place + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(body)


def test_no_raw_body_is_a_failure_of_the_server(app):
    seen = Counter()
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["rows", "text", "label", "x"]), inner)
        ),
    )
    bodies = st.one_of(
        st.binary(max_size=300),
        st.composite(cut_and_changed)(),
        json_values.map(lambda value: json.dumps(value).encode()),
        json_values.map(lambda value: json.dumps({"rows": value}).encode()),
        json_values.map(lambda value: json.dumps({"rows": [{"text": value, "label": value}]}).encode()),
    )

    @settings(QUIET, max_examples=4 * CASES)
    @given(
        body=bodies,
        kind=st.sampled_from(KINDS),
        path=st.sampled_from(["/v1/predict", "/v1/evaluate", "/v1/models/tiny/evaluate?by=text&slices=auto"]),
    )
    def run(body, kind, path):
        (response,) = asked(app, ("POST", path, {"content": body, "headers": {"content-type": kind}}))
        seen[response.status_code] += 1
        assert response.status_code < 500, response.text
        assert response.status_code == 200 or list(response.json()) == ["error"]

    run()
    assert set(seen) >= {200, 415, 422}
