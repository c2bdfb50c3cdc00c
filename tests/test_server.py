"""Where a model is served, as it is written on the command line."""

import time
from email.utils import formatdate

import pytest

from gopd_merge.errors import InputError
from gopd_merge.server import _retry_after, api_key, is_remote, split_location


def test_a_location_is_a_url_and_the_name_of_a_model_there():
    assert split_location("http://host:8000/v1#math-lora") == ("http://host:8000/v1", "math-lora")
    assert split_location("https://host/behind/v1/#Qwen/Qwen3-4B") == ("https://host/behind/v1/", "Qwen/Qwen3-4B")
    assert [is_remote(one) for one in ("http://h/v1#m", "HTTPS://h#m", "adapters/math.lora", "you/math@main", "http.lora")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("location", "line"),
    [
        ("http://host:8000/v1", "names no model on a server; write http://host:8000/v1#name"),
        ("http:///v1#math", "names no model on a server"),
        ("http://host/v1?key=secret#math", "names no model on a server"),
        ("http://host:eight/v1#math", "no URL"),
        ("http://me:secret@host/v1#math", "put the server's key into GOPD_REMOTE_API_KEY"),
        ("http://me:secret@host:eight/v1#math", "no URL"),
    ],
)
def test_what_is_no_location_is_refused_in_one_line_and_no_password_is_repeated(location, line):
    with pytest.raises(InputError) as refused:
        split_location(location)
    assert line in str(refused.value)
    assert len(refused.value.lines) == 1
    assert "@" not in str(refused.value)
    assert "me:secret" not in str(refused.value)


def test_a_key_that_a_header_cannot_hold_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("GOPD_REMOTE_API_KEY", "  key-1\n")
    assert api_key() == "key-1"
    monkeypatch.setenv("GOPD_REMOTE_API_KEY", "key-1\nkey-2")
    with pytest.raises(InputError, match="GOPD_REMOTE_API_KEY: holds characters that no key has") as refused:
        api_key()
    assert "key-2" not in str(refused.value)
    monkeypatch.delenv("GOPD_REMOTE_API_KEY")
    assert api_key() is None


def test_retry_after_is_a_number_of_seconds_or_a_date():
    assert _retry_after("7") == 7.0
    assert 50 < _retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [_retry_after(header) for header in (None, "", "soon", "-3", formatdate(0, usegmt=True))] == [0.0] * 5
