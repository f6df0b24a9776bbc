from __future__ import annotations

import copy
import json
import os
import pickle
import pprint
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import orjson
import pytest

from pgwarden.references import SECRET_BYTES_MAX, BadReference, Secret, resolve

VALUE = "canary-5f1c"


@pytest.fixture
def secret() -> Secret:
    return Secret(VALUE, "env:CANARY")


@dataclass(frozen=True)
class Holder:
    password: Secret


def test_only_reveal_shows_the_value(secret: Secret) -> None:
    assert secret.reveal() == VALUE
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        "%s" % secret,  # noqa: UP031
        format(secret, ">40"),
        repr(Holder(secret)),
        str(asdict(Holder(secret))),
        pprint.pformat({"a": [secret]}),
        json.dumps({"a": secret}, default=str),
        str(vars(type(secret))),
        str(dir(secret)),
    ]
    assert all("CANARY" in text or VALUE not in text for text in shown)
    assert not any(VALUE in text for text in shown)


def test_what_serialises_it_fails(secret: Secret) -> None:
    with pytest.raises(TypeError, match="not serialised"):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        orjson.dumps(Holder(secret))
    with pytest.raises(TypeError):
        msgspec.json.encode(Holder(secret))
    with pytest.raises(TypeError):
        hash(secret)


def test_it_cannot_be_changed(secret: Secret) -> None:
    with pytest.raises(AttributeError):
        secret.source = "env:OTHER"
    with pytest.raises(AttributeError):
        del secret.source


def test_a_copy_is_the_same_secret(secret: Secret) -> None:
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret


def test_equality_is_of_values_and_not_with_text(secret: Secret) -> None:
    assert secret == Secret(VALUE, "file:elsewhere")
    assert secret != Secret("other", "env:CANARY")
    assert secret != VALUE


def test_an_environment_variable_is_read(tmp_path: Path) -> None:
    resolved = resolve("env:SHOP_PASSWORD", tmp_path, {"SHOP_PASSWORD": VALUE})
    assert isinstance(resolved, Secret)
    assert (resolved.reveal(), resolved.source) == (VALUE, "env:SHOP_PASSWORD")


def private(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"canary-5f1c", b"canary-5f1c\n", b"canary-5f1c\r\n"])
def test_a_file_is_read_without_its_line_end(tmp_path: Path, content: bytes) -> None:
    private(tmp_path / "password", content)
    resolved = resolve("file:password", tmp_path, {})
    assert isinstance(resolved, Secret)
    assert resolved.reveal() == VALUE


def test_spaces_belong_to_the_secret(tmp_path: Path) -> None:
    private(tmp_path / "password", b" a b \n")
    resolved = resolve("file:password", tmp_path, {})
    assert isinstance(resolved, Secret)
    assert resolved.reveal() == " a b "


@pytest.mark.parametrize("reference", [VALUE, f"ENV:{VALUE}", f"vault:{VALUE}", "", f" env:{VALUE}", f"env:{VALUE}"])
def test_a_literal_is_refused_and_never_repeated(reference: str, tmp_path: Path) -> None:
    refused = resolve(reference, tmp_path, {})
    assert isinstance(refused, BadReference)
    assert VALUE not in refused.reason + refused.remedy


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"x", 0o640, "others may read"),
        (b"x", 0o604, "others may read"),
        (b"", 0o600, "is empty"),
        (b"\n", 0o600, "is empty"),
        (b"a\nb\n", 0o600, "more than one line"),
        (b"a\x00", 0o600, "control characters"),
        (b"\xff\xfe", 0o600, "not UTF-8"),
        (b"a" * (SECRET_BYTES_MAX + 1), 0o600, "more than"),
        (b"a" * (10 * SECRET_BYTES_MAX), 0o600, "larger than"),
    ],
)
def test_a_file_that_is_no_private_line_of_text_is_refused(tmp_path: Path, content: bytes, mode: int, reason: str) -> None:
    private(tmp_path / "password", content, mode)
    refused = resolve("file:password", tmp_path, {})
    assert isinstance(refused, BadReference)
    assert reason in refused.reason


def test_the_largest_secret_fits(tmp_path: Path) -> None:
    private(tmp_path / "password", b"a" * SECRET_BYTES_MAX + b"\r\n")
    assert isinstance(resolve("file:password", tmp_path, {}), Secret)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "password", 0o600)
    refused = resolve("file:password", tmp_path, {})
    assert isinstance(refused, BadReference)
    assert "not a regular file" in refused.reason


@pytest.mark.parametrize("name", ["missing", "", "a\x00b", "~nobody-of-this-name/x", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    assert isinstance(resolve(f"file:{name}", tmp_path, {}), BadReference)


def test_undecodable_bytes_of_the_environment_are_refused(tmp_path: Path) -> None:
    assert isinstance(resolve("env:X", tmp_path, {"X": "a\udcff"}), BadReference)
