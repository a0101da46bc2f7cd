"""The server under test: its clients, its native API, and keys made for a check."""

import json
import os
import urllib.error
import urllib.request

from openai import AsyncOpenAI, OpenAI

URL = os.environ["CHATSTORE_URL"]
ROOT_KEY = os.environ["CHATSTORE_API_KEY"]

# Not through a proxy that the machine may have.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def sync_client():
    return OpenAI(base_url=f"{URL}/v1", api_key=ROOT_KEY)


def async_client():
    return AsyncOpenAI(base_url=f"{URL}/v1", api_key=ROOT_KEY)


def request(method, path, body=None, headers=None):
    """Any request, without an SDK: status, headers, and what the JSON says. A body of bytes goes as it is."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"X-API-Key": ROOT_KEY, "Content-Type": "application/json", **(headers or {})}
    wanted = urllib.request.Request(f"{URL}{path}", data=data, headers=headers, method=method)
    try:
        with _OPENER.open(wanted, timeout=60) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def native(method, path, body=None, headers=None):
    """A request to the native API that succeeds."""
    status, _, text = request(method, f"/api/v1{path}", body, headers)
    assert status < 300, f"{method} {path} answered {status}: {text}"
    return json.loads(text)


def made_key(**settings):
    """The secret of a new API key."""
    return native("POST", "/admin/keys", {"name": "a check", **settings})["secret"]


def native_id(identifier):
    """The id of a conversation or an item on the native API."""
    digits = identifier.rpartition("_")[2]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
