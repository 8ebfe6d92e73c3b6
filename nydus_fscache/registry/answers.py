"""What a registry's answers say: where an upload goes on, how large a blob is, why it refuses."""

from __future__ import annotations

import re

from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.answer import StatusError
from nydus_fscache.http.call import SessionAnswer


def next_place(answer: SessionAnswer) -> Url:
    location = answer.headers.get("location", "")
    try:
        if not location:
            raise ValueError("there is none")
        place = answer.url.join(location)
        if answer.url.scheme == "https" and place.scheme != "https":
            raise ValueError("it is not encrypted")
        return place
    except ValueError as e:
        raise BackendError(f"{answer.peer} names no valid place for an upload: {e}") from e


def size_of(answer: SessionAnswer, digest: str) -> int | None:
    """Of the whole blob, from the head of an answer; None when there is none."""
    if answer.status == 404:
        return None
    if answer.status in (206, 416):
        total = answer.headers.get("content-range", "").rpartition("/")[2]
        length = int(total) if total.isascii() and total.isdigit() else None
    elif answer.status == 200:
        length = answer.length
    else:
        raise StatusError(f"blob {digest}", answer)
    if length is None:
        raise BackendError(f"{answer.peer}: no valid Content-Length")
    return length


def refusal(what: str, answer: SessionAnswer) -> StatusError:
    """With the registry's own words, which are for people (distribution spec, error codes)."""
    error = StatusError(what, answer)
    with_words = re.search(rb'"message"\s*:\s*"([^"\\]{1,200})"', _head_of(answer))
    if with_words:
        error.args = (f"{error.args[0]}: {with_words[1].decode(errors='replace')}",)
    return error


def _head_of(answer: SessionAnswer) -> bytes:
    try:
        return answer.read(16 * 1024)
    except BackendError:
        return b""
