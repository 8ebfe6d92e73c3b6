"""Authorises requests to one registry: basic, and bearer tokens that renew themselves.

Tokens are fetched by ``http.session``; the headers serve any HTTP layer.

Any number of threads may ask; one token request serves them all.  A token is
renewed in the background before it expires, so that no reader waits for it.
Credentials go to the registry and to the token server it names, and to the
latter over https whenever the registry itself is asked over https.
"""

from __future__ import annotations

import binascii
import json
import threading
import time
from base64 import b64decode, b64encode
from urllib.parse import urlencode

from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.http.call import Call
from nydus_fscache.http.retry import between
from nydus_fscache.http.session import Session
from nydus_fscache.http.wire import Deadline
from nydus_fscache.registry.challenge import Challenge

CLIENT_ID = "nydus-registry-client"
_TOKEN_LIMIT = 1024 * 1024
_DEFAULT_TTL_S = 600.0
_EARLY_S = 20.0
_RENEW_WAIT_S = 10.0
_MAX_TOKEN = 64 * 1024  # one that is longer fits into no server's request head
IDENTITY_USER = "<token>"  # as credential helpers say: the secret is an identity token


def check_auth(auth: str) -> str:
    """Base64 of user:password, or empty; ``UsageError`` otherwise."""
    try:
        valid = not auth or ":" in b64decode(auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        valid = False
    if not valid:
        raise UsageError(
            "auth is not base64 of user:password", hint="printf user:password | base64"
        )
    return auth


def scope_of(repo: str, actions: str = "pull") -> str:
    """``actions``: pull, or pull,push."""
    return f"repository:{repo}:{actions}"


class Authenticator:
    """``Authorization`` headers for one scope (``scope_of``, blanks between several).

    ``scheme``: of the registry itself.  ``session`` asks token servers.
    """

    def __init__(
        self, session: Session, scheme: str, scope: str, *, auth: str = "", token: str = ""
    ) -> None:
        self._session = session
        self._scheme = scheme
        self._scope = scope
        self._auth = check_auth(auth)
        self._lock = threading.Lock()  # held while a token is fetched
        self._header = f"Bearer {token}" if token else ""
        self._renew_at = self._expires_at = float("inf")
        self._renewing = False
        self._challenge: Challenge | None = None
        self._by_get = False

    def reauth(self, auth: str) -> None:
        """New credentials: what was got with the old ones is forgotten."""
        self._auth = check_auth(auth)
        self._header = ""

    def header(self, deadline: Deadline) -> dict[str, str]:
        """What to send now; nothing while the registry has not asked."""
        header = self._header
        now = time.monotonic()
        if now >= self._expires_at or (not header and self._challenge):
            header = self._renew(header, deadline)
        elif now >= self._renew_at and not self._renewing:
            self._renewing = True
            threading.Thread(target=self._renew_early, args=(header,), daemon=True).start()
        return {"Authorization": header} if header else {}

    def refused(self, sent: dict[str, str], challenge: Challenge, deadline: Deadline) -> None:
        """A request that carried ``sent`` got 401: the next ``header()`` meets the challenge."""
        self._challenge = challenge
        self._renew(sent.get("Authorization", ""), deadline)

    def _renew_early(self, used: str) -> None:
        try:
            self._renew(used, Deadline(time.monotonic() + _RENEW_WAIT_S, _RENEW_WAIT_S))
        except BackendError:
            self._renew_at = time.monotonic() + _RENEW_WAIT_S  # the old one still serves
        finally:
            self._renewing = False

    def _renew(self, used: str, deadline: Deadline) -> str:
        if not self._lock.acquire(timeout=max(0.0, deadline.left())):
            raise BackendError("no token in time", hint="the token server is slow", retryable=True)
        try:
            challenge = self._challenge
            if challenge is None or self._header not in ("", used):
                return self._header  # somebody else was faster
            if challenge.scheme == "basic":
                self._header = f"Basic {self._auth}" if self._auth else ""
                self._renew_at = self._expires_at = float("inf")
                return self._header
            auth = self._auth
            token, ttl_s = self._fetch(challenge, auth, deadline)
            if auth == self._auth:  # else: new credentials came meanwhile
                now = time.monotonic()
                early = _EARLY_S + between(0, min(ttl_s / 10, 300))
                self._renew_at = now + max(ttl_s - early, ttl_s / 2)
                self._expires_at = now + ttl_s
                self._header = f"Bearer {token}"
            return f"Bearer {token}"
        finally:
            self._lock.release()

    def _fetch(self, challenge: Challenge, auth: str, deadline: Deadline) -> tuple[str, float]:
        try:
            realm = Url.parse(challenge.realm)
        except ValueError as e:
            raise BackendError(f"the registry names a bad token server: {e}") from e
        if self._scheme == "https" and realm.scheme != "https":
            raise BackendError(
                f"the registry wants credentials sent to {realm.base}, unencrypted",
                hint="the registry's token realm must be https",
            )
        query = {"service": challenge.service} if challenge.service else {}
        query["scope"] = _joined(challenge.scope, self._scope)
        query["client_id"] = CLIENT_ID
        if not self._by_get:
            status, body = self._post(realm, query, auth, deadline)
            if status == 200:
                return _token(body, realm)
        status, body = self._get(realm, query, auth, deadline)
        if status == 200:
            self._by_get = True
            return _token(body, realm)
        raise BackendError(
            f"token server {realm} answers {status}",
            hint="wrong or missing credentials: docker login, IMAGE_PULL_AUTH, or auth",
            status=status,
            retryable=status == 429 or status >= 500,
        )

    def _post(
        self, realm: Url, query: dict[str, str], auth: str, deadline: Deadline
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        user, _, secret = b64decode(auth).decode().partition(":")
        if user == IDENTITY_USER:
            query = {**query, "grant_type": "refresh_token", "refresh_token": secret}
        elif auth:
            headers["Authorization"] = f"Basic {auth}"
            query = {**query, "grant_type": "password", "username": user, "password": secret}
        call = Call("POST", realm, own_headers=headers, body=urlencode(query).encode())
        return self._ask(call, deadline)

    def _get(
        self, realm: Url, query: dict[str, str], auth: str, deadline: Deadline
    ) -> tuple[int, bytes]:
        mark = "&" if "?" in realm.target else "?"
        scopes = [("scope", scope) for scope in query["scope"].split()]
        words = [*scopes, *(pair for pair in query.items() if pair[0] != "scope")]
        url = realm.with_target(f"{realm.target}{mark}{urlencode(words)}")
        identity = b64decode(auth).startswith(f"{IDENTITY_USER}:".encode())
        headers = {"Authorization": f"Basic {auth}"} if auth and not identity else {}
        return self._ask(Call("GET", url, own_headers=headers), deadline)

    def _ask(self, call: Call, deadline: Deadline) -> tuple[int, bytes]:
        with self._session.send_once(call, deadline) as answer:
            return answer.status, answer.read(_TOKEN_LIMIT)


def _joined(offered: str, wanted: str) -> str:
    """The scope that the registry names, with the actions that are wanted besides.

    A registry behind another name calls its repositories otherwise, and knows best.
    """
    more = dict(scope.rsplit(":", 1) for scope in wanted.split())
    scopes = []
    for scope in offered.split():
        name, _, actions = scope.rpartition(":")
        named = actions.split(",")
        named += [a for a in more.get(name, "").split(",") if a and a not in named]
        scopes.append(f"{name}:{','.join(named)}")
    return " ".join(scopes) or wanted


def _token(body: bytes, realm: Url) -> tuple[str, float]:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
        ttl_s = float(answer.get("expires_in") or _DEFAULT_TTL_S)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        token, ttl_s = None, 0.0
    if (
        not isinstance(token, str)
        or not 0 < len(token) < _MAX_TOKEN
        or not (token.isascii() and token.isprintable())
    ):
        raise BackendError(f"token server {realm} answers no token", hint="is it a token server?")
    return token, ttl_s


def basic(user: str, password: str) -> str:
    """``auth`` as configurations and this module write it."""
    return b64encode(f"{user}:{password}".encode()).decode()
