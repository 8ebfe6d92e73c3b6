"""The command line is the original's: options, defaults, environment, messages, exit codes.

A row: name, default (False: a boolean), environment ("" for the name in capitals, "-" for none),
aliases.
"""

from __future__ import annotations

from importlib import import_module

import pytest
from oci_kit import Nydusify

from nydus_fscache.cli.nydusify.main import COMMANDS
from nydus_fscache.cli.nydusify.options import Option, parse

BACKEND = (
    ("backend-type", "", "BACKEND_TYPE"), ("backend-config", "", "BACKEND_CONFIG"),
    ("backend-config-file", "", "BACKEND_CONFIG_FILE"),
)  # fmt: skip
SOURCE_BACKEND = tuple((f"source-{name}", *rest) for name, *rest in BACKEND)
TARGET_BACKEND = tuple((f"target-{name}", *rest) for name, *rest in BACKEND)
INSECURE = (("source-insecure", False, ""), ("target-insecure", False, ""))
PLATFORMS = (("all-platforms", False, "-"), ("platform", "", "-"))
BUILDER = (("nydus-image", "", ""),)  # empty: our own, without a search in PATH
TABLE: dict[str, tuple[tuple[object, ...], ...]] = {
    "convert": (
        ("source", "", ""), ("source-archive", "", ""), ("target", "", ""),
        ("target-suffix", "", ""), ("target-archive", "", ""), *INSECURE, *BACKEND,
        ("backend-force-push", False, ""), ("source-backend-type", "", ""),
        ("source-backend-config", "", ""), ("build-cache", "", ""), ("build-cache-tag", "", ""),
        ("build-cache-version", "v1", ""), ("build-cache-insecure", False, ""),
        ("build-cache-max-records", "200", ""), ("chunk-dict", "", ""),
        ("chunk-dict-insecure", False, ""),
        ("merge-platform", False, "MERGE_PLATFORM", "multi-platform"), *PLATFORMS,
        ("oci-ref", False, ""), ("with-referrer", False, ""), ("oci", False, ""),
        ("docker-v2-format", False, "-"), ("reverse", False, ""), ("fs-version", "6", ""),
        ("fs-align-chunk", False, ""), ("backend-aligned-chunk", False, ""),
        ("prefetch-dir", "", ""), ("prefetch-patterns", False, ""), ("compressor", "zstd", ""),
        ("fs-chunk-size", "0x100000", "", "chunk-size"), ("batch-size", "0", ""),
        ("work-dir", "./tmp", ""), *BUILDER, ("output-json", "", ""), ("plain-http", False, ""),
        ("push-retry-count", "3", ""), ("push-retry-delay", "5s", ""),
    ),
    "check": (
        ("source", "", ""), ("target", "", ""), *INSECURE, *SOURCE_BACKEND, *TARGET_BACKEND,
        ("multi-platform", False, ""), ("platform", "", "-"), ("work-dir", "./output", ""),
        *BUILDER, ("nydusd", "nydusd", ""),
    ),
    "mount": (
        ("target", "", ""), ("target-insecure", False, ""), *BACKEND, ("prefetch", False, ""),
        ("mount-path", "./image-fs", ""), ("platform", "", "-"), ("work-dir", "./tmp", ""),
        ("nydusd", "nydusd", ""),
    ),
    "build": (
        ("source-dir", "", "", "target-dir"), ("output-dir", "./.nydus-build-output", "", "o"),
        ("backend-push", False, ""), ("backend-type", "oss", "BACKEND_TYPE"), *BACKEND[1:],
        ("chunk-dict", "", ""), ("parent-bootstrap", "", ""), ("compact", False, ""),
        ("compact-config-file", "", ""), ("fs-version", "6", ""), ("compressor", "zstd", ""),
        ("chunk-size", "0x100000", ""), *BUILDER,
    ),
    "copy": (
        ("source", "", ""), ("target", "", ""), *INSECURE, *SOURCE_BACKEND, *PLATFORMS,
        ("push-chunk-size", "0MB", "-"), ("work-dir", "./tmp", ""), *BUILDER,
    ),
    "optimize": (
        ("source", "", ""), ("target", "", ""), *INSECURE,
        ("policy", "separated-blob-with-prefetch-files", "OPTIMIZE_POLICY"),
        ("prefetch-files", "", ""), ("push-chunk-size", "0MB", "-"), *SOURCE_BACKEND,
        ("work-dir", "./tmp", ""), *BUILDER,
    ),
    "commit": (
        ("container", "", ""), ("target", "", ""),
        ("containerd-address", "/run/containerd/containerd.sock", "CONTAINERD_ADDR"),
        ("namespace", "default", "", "n"), ("maximum-times", "400", ""),
        ("with-path", "", "", "with-mount-path"), *INSECURE, ("work-dir", "./tmp", ""), *BUILDER,
    ),
    "chunkdict": (
        ("sources", "", ""), ("target", "", ""), *INSECURE, *BACKEND, *PLATFORMS,
        ("work-dir", "./output", ""), *BUILDER,
    ),
}  # fmt: skip


def options_of(command: str) -> dict[str, Option]:
    module = import_module(f"nydus_fscache.cli.nydusify.{COMMANDS[command]}")
    return {option.name: option for option in module.OPTIONS}


@pytest.mark.parametrize("command", TABLE)
def test_options_defaults_environment_and_aliases(command: str) -> None:
    options = options_of(command)
    for name, default, variable, *aliases in TABLE[command]:
        assert isinstance(name, str)
        option = options[name]
        assert option.default == default, name
        variables = {"-": (), "": (name.upper().replace("-", "_"),)}.get(
            str(variable), (str(variable),)
        )
        assert option.variables() == variables, name
        for spelling in (name, *map(str, aliases)):
            if default is False:
                assert parse([option], [f"-{spelling}"], {}).flag(name)
                assert not parse([option], [f"--{spelling}", "false"], {}).flag(name)
                continue
            for words in ([f"--{spelling}", "x"], [f"-{spelling}=x"]):
                assert parse([option], words, {}).text(name) == "x"
        for one in option.variables():
            found = parse([option], [], {one: "true"})
            assert found.flag(name) if default is False else found.text(name) == "true"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 0, ""), ("help", 0, ""), ("--version", 0, ""), ("nothing", 3, "No help topic"),
        ("convert", 1, 'Required flag "source" not set'),
        ("convert --nope", 1, "flag provided but not defined: -nope"),
        ("convert --source a", 1, "--target or --target-suffix is required"),
        ("convert --source a --target b --target-suffix c", 1,
         "--target conflicts with --target-suffix"),
        ("convert --source a@sha256:" + "0" * 64 + " --target-suffix x", 1,
         "unsupported digested image reference"),
        ("convert --source a --target b --backend-type x --backend-config {}", 1,
         "--backend-type should be one of [oss s3 localfs]"),
        ("convert --source a --target b --backend-type s3", 1, "backend configuration is empty"),
        ("convert --source a --target b --backend-type s3 --backend-config {} "
         "--backend-config-file f", 1, "--backend-config conflicts with --backend-config-file"),
        ("convert --source a --target b --build-cache c --build-cache-tag t", 1,
         "--build-cache conflicts with --build-cache-tag"),
        ("convert --source a --target b --build-cache c --build-cache-max-records 201", 1,
         "should not be greater than 200"),
        ("convert --source a --target b --build-cache c --build-cache-max-records 0", 1,
         "should be greater than 0"),
        ("convert --source a --target b --chunk-dict x", 1, "invalid args"),
        ("convert --source a --target b --chunk-dict x:registry:c", 1,
         "invalid chunk dict format x, should be [bootstrap]"),
        ("convert --source a --target b --chunk-dict bootstrap:foo:c", 1,
         "invalid chunk dict source foo, should be [registry local]"),
        ("convert --source a --target b --fs-version 4", 1, "should be one of [5 6]"),
        ("convert --source a --target b --fs-version 5 --batch-size 0x1000", 1,
         "can only be supported by fs version 6"),
        ("convert --source a --target b --prefetch-dir / --prefetch-patterns", 1,
         "--prefetch-dir conflicts with --prefetch-patterns"),
        ("convert --source a --target b --push-retry-delay zz", 1, 'invalid duration "zz"'),
        ("convert --source a --target b --platform //", 1, "invalid platform"),
        ("convert --source a --source-archive none --target b", 1,
         "source archive not accessible"),
        ("check --target a --platform linux", 1, "invalid platform format, linux"),
        ("check --target a --platform windows/amd64", 1, "not support os windows"),
        ("check --target a --platform linux/arm", 1, "not support architecture arm"),
        ("copy --source a --target b --push-chunk-size 1xb", 1,
         "unhandled size name: xb"),
        ("chunkdict", 0, ""), ("chunkdict other", 3, "No help topic"),
        ("build --name x", 1, 'Required flag "source-dir" not set'),
    ],
)  # fmt: skip
def test_messages_and_exit_codes(nydusify: Nydusify, words: str, code: int, said: str) -> None:
    told = nydusify.run(*words.split(), code=code)
    assert said.replace('"', '\\"') in told or said in told, told
    assert "Traceback" not in told
    assert nydusify.left() == []
