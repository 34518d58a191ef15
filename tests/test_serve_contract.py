"""A bounded search for requests that break the description, or the service: no 500, and nothing undescribed."""

from typing import Any

import pytest
from fake_models import fake_app

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from hypothesis import HealthCheck, settings  # noqa: E402  (it comes with schemathesis)

schema = schemathesis.openapi.from_asgi("/openapi.json", fake_app())


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_service(case: Any) -> None:
    answer = case.call()
    assert answer.status_code < 500, answer.text
    case.validate_response(
        answer,
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.checks.status_code_conformance,
            schemathesis.checks.content_type_conformance,
            schemathesis.checks.response_schema_conformance,
        ],
    )
