"""The settings of a server: safe defaults, and a refusal of values that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from tessella.errors import UsageError
from tessella.serve.settings import ServeSettings


def test_the_defaults_bind_only_the_loopback_interface() -> None:
    settings = ServeSettings()
    assert settings.is_loopback
    assert (settings.token, settings.allow_urls) == (None, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert ServeSettings(host=host).is_loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.0.1", "example.org", "localhost.example.org", "2130706433"]
)
def test_other_addresses_need_a_token(host: str) -> None:
    with pytest.raises(UsageError, match="needs a token"):
        ServeSettings(host=host)
    assert not ServeSettings(host=host, token="secret").is_loopback


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(ServeSettings(token="secret"))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(token=""),
        dict(token=" "),
        dict(token=" secret"),  # headers lose spaces at their ends, so no request could have it
        dict(token="secret "),
        dict(token="a\nb"),
        dict(token="é"),
        dict(port=-1),
        dict(port=65_536),
        dict(deadline=0),
        dict(deadline=float("nan")),
        dict(max_delay=-1),
        dict(max_delay=float("inf")),
        dict(queue_images=63),  # less than a request may have
        dict(queue_bytes=1),
        dict(max_images=0),
        dict(batch_size=0),
        dict(decode_processes=0),
        dict(decode_timeout=0),
        dict(idle_minutes=0),
        dict(memory_limit=0),
        dict(explain_deadline=0),
        dict(calibrated="no"),
        dict(explain_idle_minutes=0),
        dict(drain_timeout=-1),
        dict(models="convmixer"),
        dict(transform="quick"),
        dict(policy="strict"),
        dict(index="run"),
    ],
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        ServeSettings(**wrong)
    assert refused.value.code == "bad_argument"


def test_there_is_room_for_the_largest_request_and_for_four_batches() -> None:
    assert ServeSettings().queue_images_for(8) == 64
    assert ServeSettings().queue_images_for(32) == 128
    assert ServeSettings(max_images=300).queue_images_for(8) == 300
    assert ServeSettings(queue_images=80).queue_images_for(128) == 80


def test_the_limit_on_one_image_is_not_above_that_on_the_body() -> None:
    assert ServeSettings().limits.bytes == 20_000_000
    assert ServeSettings(max_body_bytes=1000).limits.bytes == 1000
