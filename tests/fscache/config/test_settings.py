"""The configuration file: checked by key, after options and environment, read anew by a service."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from nydus_fscache.config import settings
from nydus_fscache.errors import UsageError


def environment(tmp_path: Path, text: str, **given: str) -> dict[str, str]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return {settings.FILE: str(file), **given}


def test_no_file_is_an_empty_one(tmp_path: Path) -> None:
    given = {settings.FILE: str(tmp_path / "none.toml")}
    before = dict(given)
    settings.apply(given)
    assert given == before
    assert {s.source for s in settings.in_force(given)} == {"default"}
    assert all(s.key.variable not in given for s in settings.in_force(given))


def test_values_become_variables(tmp_path: Path) -> None:
    text = 'root = "/srv/n"\n[cache]\nlimit = "20G"\n[log]\nrate = 2.5\nkeep = 0\n'
    given = environment(tmp_path, text)
    settings.apply(given)
    assert given["NYDUS_FSCACHE_ROOT"] == "/srv/n"
    assert given["NYDUS_FSCACHE_CACHE_LIMIT"] == str(20 << 30)
    assert given["NYDUS_FSCACHE_LOG_RATE"] == "2.5"
    sources = {s.key.name: s.source for s in settings.in_force(given)}
    assert sources["cache.limit"] == sources["log.keep"] == "file"
    assert sources["log.level"] == "default"


def test_the_environment_and_options_win_and_keep_winning(tmp_path: Path) -> None:
    text = '[cache]\nlimit = 5\n[log]\nlevel = "DEBUG"\n[metrics]\nlisten = "127.0.0.1:1"\n'
    given = environment(tmp_path, text, NYDUS_FSCACHE_LOG="ERROR")
    settings.apply(given)
    settings.give("NYDUS_FSCACHE_METRICS", "[::1]:2", given)
    for _ in range(2):  # the command's process, then the service's
        settings.apply(given)
        assert given["NYDUS_FSCACHE_LOG"] == "ERROR"
        assert given["NYDUS_FSCACHE_METRICS"] == "[::1]:2"
        assert given["NYDUS_FSCACHE_CACHE_LIMIT"] == "5"


def test_a_service_takes_up_what_changed(tmp_path: Path) -> None:
    given = environment(tmp_path, '[cache]\nlimit = 5\n[log]\nlevel = "DEBUG"\n')
    settings.apply(given)
    environment(tmp_path, "[cache]\nlimit = 6\n")
    settings.apply(given)
    assert given["NYDUS_FSCACHE_CACHE_LIMIT"] == "6"
    assert "NYDUS_FSCACHE_LOG" not in given
    environment(tmp_path, "[cache]\nlimit = false\n")
    before = dict(given)
    with pytest.raises(UsageError):
        settings.apply(given)
    assert given == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cache]\nlimti = 5\n", "there is no key cache.limti"),
        ("[cache.limit]\nx = 5\n", "cache.limit is {'x': 5}"),
        ("[cache]\nlimit = -5\n", "cache.limit is -5"),
        ("[cache]\nlimit = '5 apples'\n", "cache.limit is '5 apples'"),
        ("cache = 5\n", "there is no key cache"),
        ("[log]\nlevel = 'LOUD'\n", "log.level is 'LOUD'"),
        ("[log]\nlevel = ['INFO']\n", "log.level is ['INFO']"),
        ("[log]\nkeep = true\n", "log.keep is True"),
        ("[daemon]\nstart_timeout = inf\n", "daemon.start_timeout is inf"),
        ("[daemon]\nstart_timeout = nan\n", "daemon.start_timeout is nan"),
        ("[daemon]\ndeny_after = 0\n", "daemon.deny_after is 0"),
        ("root = 'relative'\n", "root is 'relative'"),
        ("[metrics]\nlisten = 'localhost:1'\n", "metrics.listen is 'localhost:1'"),
        ("[cache\n", "line 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    given = environment(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        settings.apply(given)
    assert said in str(raised.value)
    assert given[settings.FILE] in str(raised.value)
    assert raised.value.hint


def test_a_misspelt_key_gets_a_suggestion(tmp_path: Path) -> None:
    given = environment(tmp_path, "[cache]\nlimti = 5\n")
    with pytest.raises(UsageError) as raised:
        settings.apply(given)
    assert raised.value.hint == "do you mean cache.limit?"


def test_the_example_says_the_defaults(tmp_path: Path) -> None:
    text = settings.example()
    empty = tomllib.loads(text)
    assert all(table == {} for table in empty.values())
    lines = [re.sub(r"^#(?=\S)", "", line) for line in text.splitlines()]
    given = environment(tmp_path, "\n".join(line for line in lines if "…" not in line))
    settings.apply(given)
    for one in settings.in_force(given):
        if one.key.default:
            assert one.source == "file", one
            assert one.value == one.key.check(one.key.default)
