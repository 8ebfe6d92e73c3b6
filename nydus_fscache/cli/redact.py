"""Takes secrets out of text that is to leave the node.

Guarantees: a secret that was ``learnt`` does not stay in any text, neither as it is nor in base64,
percent or JSON notation; beyond those, values of members with a secret's name, credentials in
URLs, queries of URLs and ``Authorization`` headers go, whatever they are.  In doubt too much goes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

GONE = "<removed>"
_LEAST = 4  # shorter values are found by their names only: they occur everywhere
_NAMES = re.compile(
    r"(auth|pass(word|wd)?|token|secret|credential|cookie|signature|access_?key(_?id)?|"
    r"(encryption|private|api)_?key|session)", re.I,
)  # fmt: skip
# names that would match, of members that hold no secret
_HARMLESS = {"auths", "author", "auth_through", "authenticated"}
_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)([^/\s\"'<>]*@)?([^\s\"'<>?]*)(\?[^\s\"'<>]*)?", re.I)
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|x-[a-z-]*token|cookie)(\"?\s*[:=]\s*)[^\r\n]*", re.I
)
_SCHEME = re.compile(r"\b(basic|bearer)\s+[A-Za-z0-9+/_=.~-]{8,}", re.I)
_ASSIGNED = re.compile(
    r"(\b[\w.-]*(?:auth|password|passwd|token|secret|credential|access_?key)[\w.-]*"
    r"(?:\"|')?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;}\]]+)", re.I,
)  # fmt: skip


def is_secret_name(name: str) -> bool:
    return bool(_NAMES.search(name)) and name.lower() not in _HARMLESS


class Redactor:
    def __init__(self) -> None:
        self._known: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def learn(self, document: Any) -> None:
        """Of a document with credentials: every string below a secret's name."""
        for secret in _secrets(document, below=False):
            self.learn_text(secret)

    def learn_text(self, secret: str) -> None:
        """One that may be ``user:password`` in base64: then its parts, too."""
        texts = {secret}
        try:
            plain = base64.b64decode(secret, validate=True).decode()
            texts.add(plain)
        except ValueError:
            plain = secret
        if ":" in plain:
            texts.add(plain.split(":", 1)[1])
        for text in texts:
            encoded = text.encode()
            self._known |= {
                form for form in (
                    text, quote(text, safe=""), json.dumps(text)[1:-1],
                    base64.b64encode(encoded).decode().rstrip("="),
                    base64.urlsafe_b64encode(encoded).decode().rstrip("="),
                ) if len(form) >= _LEAST
            }  # fmt: skip
        self._pattern = None

    def text(self, text: str) -> str:
        if self._known:
            if self._pattern is None:
                longest_first = sorted(self._known, key=len, reverse=True)
                self._pattern = re.compile("|".join(map(re.escape, longest_first)))
            text = self._pattern.sub(GONE, text)
        text = _HEADER.sub(rf"\1\2{GONE}", text)
        text = _SCHEME.sub(rf"\1 {GONE}", text)
        text = _URL.sub(_bare_url, text)
        return _ASSIGNED.sub(rf"\1{GONE}", text)

    def document(self, document: Any) -> Any:
        if isinstance(document, Mapping):
            return {
                self.text(str(k)): GONE if v and is_secret_name(str(k)) and not _is_count(v)
                else self.document(v) for k, v in document.items()
            }  # fmt: skip
        if isinstance(document, list):
            return [self.document(v) for v in document]
        return self.text(document) if isinstance(document, str) else document


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float)


def _bare_url(found: re.Match[str]) -> str:
    user = f"{GONE}@" if found[2] else ""
    return f"{found[1]}{user}{found[3]}{'?' + GONE if found[4] else ''}"


def _secrets(document: Any, *, below: bool) -> Iterator[str]:
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield from _secrets(value, below=below or is_secret_name(str(name)))
    elif isinstance(document, list):
        for value in document:
            yield from _secrets(value, below=below)
    elif isinstance(document, str):
        if below and document:
            yield document
        if found := re.search(r"://([^/\s@]*):([^/\s@]+)@", document):
            yield found[2]
