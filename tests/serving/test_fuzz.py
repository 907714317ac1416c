"""Requests made from the server's own OpenAPI description: none ends in a 500."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode

from namm.serving import Limits
from namm.serving.settings import Settings
from tests.serving.conftest import running

EXAMPLES = int(os.environ.get("NAMM_FUZZ", "30"))  # requests to each route, of each kind
_REFUSED = ("tools", "chat_template_kwargs", "logit_bias", "max_completion_tokens")
_OTHERS = ("tool_calls", "audio", "function_call")  # of a message
QUIET = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES <= 30,
    database=None, phases=[Phase.generate],
)  # fmt: skip


def servable(body: dict[str, Any]) -> dict[str, Any]:
    """Much the same request, without what the tiny model's template or vocabulary lacks."""
    kept = {name: value for name, value in body.items() if name not in _REFUSED} | {"max_tokens": 3}
    if isinstance(messages := kept.get("messages"), list):
        kept["messages"] = [
            {"content": "Hi."} | {name: value for name, value in message.items() if value and name not in _OTHERS}
            if isinstance(message, dict)
            else message
            for message in messages
        ]
    if isinstance(prompt := kept.get("prompt"), list) and prompt and not isinstance(prompt[0], str):
        kept["prompt"] = [3, 4, 5]
    return kept


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_ends_in_a_500(folder, mode):
    limits = Limits(answer=4, waiting=1000)
    with running(Settings(str(folder), ("h2o", "full"), 0.25, 32, limits=limits)) as server:
        described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        statuses: dict[str, set[int]] = {}

        def send(case: Case) -> None:
            answer = case.call(timeout=60)
            statuses.setdefault(case.operation.label, set()).add(answer.status_code)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"]

        def fuzz(case: Case) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body |= {"model": "tiny"}  # or no request would get past its name
                send(case)
                case.body = servable(case.body)
            send(case)

        for found in described.get_all_operations():
            operation = found.ok()
            if mode is GenerationMode.POSITIVE or operation.body:  # a request without a body cannot be wrong
                QUIET(given(operation.as_strategy(generation_mode=mode))(fuzz))()
        assert len(statuses) == (9 if mode is GenerationMode.POSITIVE else 2)
        for route in ("POST /v1/chat/completions", "POST /v1/completions"):
            assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses[route]
        assert server.http().get("/health").json()["status"] == "ok"
