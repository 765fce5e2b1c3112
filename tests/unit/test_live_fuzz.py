"""Whatever is sent to the routes of the live score, they answer with what their OpenAPI document says, never a 5xx."""

import asyncio
import json
import os
from collections import Counter

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pmray.serving.live import Scorekeeper, build_router
from pmray.serving.metrics import ServingMetrics
from pmray.spec import Live
from tests.serving import served_app
from tests.tiny import tiny_bundle
from tests.unit.test_live_routes import TwoVersions

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

CASES = int(os.environ.get("PMRAY_FUZZ", "10"))
QUIET = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    models = TwoVersions(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))
    url = f"sqlite:///{tmp_path_factory.mktemp('store')}/live.db"
    keeper = Scorekeeper(url, Live(), models, ServingMetrics().registry)
    yield served_app(models, recorder=keeper, routers=[build_router(keeper, models, max_rows=100)])
    asyncio.run(keeper.close())


def test_no_case_of_the_openapi_document_is_a_failure_of_the_server(app):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen = Counter()
    paths = [one.ok() for one in schema.get_all_operations() if one.ok().path in ("/v1/feedback", "/v1/live")]
    assert len(paths) == 2
    for operation in paths:

        @QUIET
        @given(case=operation.as_strategy())
        def run(case):
            response = case.call()
            seen[response.status_code] += 1
            checks = schemathesis.specs.openapi.checks
            case.validate_response(
                response,
                checks=[
                    schemathesis.checks.not_a_server_error,
                    checks.status_code_conformance,
                    checks.content_type_conformance,
                    checks.response_schema_conformance,
                ],
            )

        run()
    assert seen[200] > 0
    assert max(seen) < 500


def test_no_body_is_a_failure_of_the_server(app):
    seen = Counter()
    keys = st.sampled_from(["id", "label", "time", "feedback", "x"])
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a", "positive"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner),
    )
    label = st.fixed_dictionaries({"id": values, "label": values}, optional={"time": values})
    bodies = st.one_of(
        st.binary(max_size=200),
        values.map(lambda value: json.dumps(value).encode()),
        label.map(lambda value: json.dumps(value).encode()),
        st.lists(label, max_size=5).map(lambda value: json.dumps({"feedback": value}).encode()),
    )

    async def sent(body):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
            return await client.post("/v1/feedback", content=body, headers={"content-type": "application/json"})

    @settings(QUIET, max_examples=8 * CASES)
    @given(body=bodies)
    def run(body):
        response = asyncio.run(sent(body))
        seen[response.status_code] += 1
        assert response.status_code in (200, 422), response.text
        assert response.status_code == 200 or list(response.json()) == ["error"]

    run()
    assert set(seen) == {200, 422}
