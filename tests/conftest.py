import time
import types

import pytest
from browsers import CHROMIUM, NODE
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from standin_hub import StandInHub


@pytest.fixture(params=["node", "chromium"])
def engine(request):
    """What runs JavaScript: each that is installed."""
    if not {"node": NODE, "chromium": CHROMIUM}[request.param]:
        pytest.skip(f"{request.param} isn't installed")
    return request.param


@pytest.fixture
def any_engine():
    if not (NODE or CHROMIUM):
        pytest.skip("neither node nor chromium is installed")
    return "node" if NODE else "chromium"


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client of the Hub would have waited before asking again; it doesn't."""
    found = []
    clock = types.SimpleNamespace(**vars(time) | {"sleep": found.append})
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    return found


@pytest.fixture
def standin(tmp_path, monkeypatch, waits):
    """A stand-in for the Hub with nothing in it, and an empty cache; nobody is logged in.

    `standin.point_at(url)` sends the client elsewhere.
    """

    def point_at(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    hub = StandInHub()
    hub.point_at = point_at
    point_at(hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield hub
    hub.close()
