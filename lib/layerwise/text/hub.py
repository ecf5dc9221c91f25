"""Downloads from the Hugging Face Hub into its cache: what is needed and no more, and what to do when that fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

# A broken connection raises an error of httpx under huggingface-hub 1, and of httpx2 under 2, as its own errors are.
HTTPError = errors.HfHubHTTPError.__bases__[0]

INDEX = "model.safetensors.index.json"
# Not "*.safetensors": some repositories hold the same weights a second time, for other programs.
BESIDE = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"]
BESIDE += ["generation_config.json"]
HOW_TO_GIVE_IT = "in Colab as the secret HF_TOKEN, elsewhere as the environment variable HF_TOKEN or by `hf auth login`"


class HubError(OSError):
    """A model or a corpus that could not be had from the Hub."""


class Unreachable(HubError):
    """The Hub doesn't answer, and the cache hasn't got it."""


class NotOnHub(HubError):
    """A name that the Hub doesn't know, or doesn't tell of."""


def token() -> str | None:
    """Colab's secret HF_TOKEN, else the environment variable of that name, or what `hf auth login` left; else none."""
    try:
        from google.colab import userdata

        return userdata.get("HF_TOKEN") or huggingface_hub.get_token()
    except Exception:  # no Colab, no such secret, or this notebook may not read it: each has an exception of its own
        return huggingface_hub.get_token()


def download_model(name: str, revision: str | None, weights: Callable[[dict], list[str]]) -> Path:
    """The folder, in the Hub's cache, of a model with its configuration, safetensors and tokenizer.

    `weights` gets the configuration before anything large is fetched: it raises if the model is of no use, and returns
    the names of the files with the weights, or none if they are model.safetensors or what its index lists. Files that
    are there already are not fetched again, and without a network what is in the cache is taken.

    Raises HubError, which says what to do: for a licence that wasn't accepted, a revision that isn't there, weights
    that are no safetensors, a Hub that can't be reached; NotOnHub for a name that it doesn't know.
    """
    options = {"repo_id": name, "revision": revision, "token": token()}
    with _explained("model", name, revision, options["token"]):
        config = Path(hf_hub_download(filename="config.json", **options))
        own = weights(_read(config))
        files = ["config.json", *(own or _weights(config.parent, options))]
        return Path(snapshot_download(allow_patterns=[*files, *BESIDE], **options))


def download_config(name: str, revision: str | None) -> Path:
    """The config.json of a model, in the Hub's cache, and nothing else; raises HubError as `download_model` does."""
    sent = token()
    with _explained("model", name, revision, sent):
        return Path(hf_hub_download(name, "config.json", revision=revision, token=sent))


def file(dataset: str, name: str, revision: str) -> Path:
    """One file of a dataset, in the Hub's cache; raises HubError as `download_model` does."""
    sent = token()
    with _explained("dataset", dataset, revision, sent):
        return Path(hf_hub_download(dataset, name, repo_type="dataset", revision=revision, token=sent))


@contextmanager
def _explained(kind: str, name: str, revision: str | None, sent: str | None) -> Iterator[None]:
    """What goes wrong inside, as a HubError that says what to do."""
    try:
        yield
    except HubError:
        raise
    except errors.HFValidationError as error:
        raise NotOnHub(f"{name!r} can't be the name of a {kind} on the Hub") from error
    except errors.GatedRepoError as error:
        raise HubError(_gated(kind, name, sent)) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name} has no revision {revision!r}: give a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        raise NotOnHub(
            f"the Hub has no {kind} {name!r}, or one that only the holder of a token may see: check the name, and give "
            f"a token if it is private ({HOW_TO_GIVE_IT})"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # not in the cache, and asking the Hub for it failed
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise HubError(_refused(name, error.__cause__)) from error
        raise Unreachable(_unreachable(kind, name, revision)) from error
    except errors.EntryNotFoundError as error:
        missing = str(getattr(getattr(error, "response", None), "url", "a file")).split("/")[-1]
        hint = ". A model needs config.json and safetensors; pickled weights are not read and must be converted"
        raise HubError(f"{name}: {missing} is not there{hint if kind == 'model' else ''}") from error
    except errors.HfHubHTTPError as error:
        raise HubError(_refused(name, error)) from error
    except HTTPError as error:
        raise HubError(
            f"the download of {name} broke off: {error}. Run it again: files that are complete are not fetched again"
        ) from error
    except OSError as error:  # no room, or no right to write
        raise HubError(f"{name} can't be kept in {constants.HF_HUB_CACHE}: {error}") from error


def cached(kind: str = "model") -> list[str]:
    """Models, or datasets, in the Hub's cache on this machine."""
    try:
        found = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    except errors.CacheNotFound:
        return []
    return sorted(repo.repo_id for repo in found if repo.repo_type == kind)


def _weights(snapshot: Path, options) -> list[str]:
    """Names of the files with the weights: those of the index, or the one without an index."""
    single = "model.safetensors"
    if not (snapshot / INDEX).exists() and (snapshot / single).exists():
        return [single]  # of this very commit, so the Hub need not be asked for an index
    try:
        index = Path(hf_hub_download(filename=INDEX, **options))
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise
        hf_hub_download(filename=single, **options)  # or an error that names it
        return [single]
    places = _read(index).get("weight_map", {})
    return [INDEX, *sorted(set(places.values()))]


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{path.name} as the Hub has it is no JSON: {error}") from error


def _refused(name, error) -> str:
    if error.response.status_code == 401:
        return f"the Hub doesn't know the token that was sent for {name}: give another one ({HOW_TO_GIVE_IT}), or none"
    return f"the Hub refused {name}: {error}"


def _gated(kind, name, sent) -> str:
    page = name if kind == "model" else f"datasets/{name}"
    why = "your token's account has not" if sent else "no token was given, so nobody has"
    return (
        f"{name} is gated: {why} accepted its licence. Accept it at {constants.ENDPOINT}/{page}, then give a token of "
        f"that account ({HOW_TO_GIVE_IT})"
    )


def _unreachable(kind, name, revision) -> str:
    there = ", ".join(cached(kind)) or "none"
    which = f"revision {revision} of {name}" if revision else name
    return f"the Hub can't be reached, and {which} is not in the cache. In it are: {there}"
