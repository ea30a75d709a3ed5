"""What a token proves, and the file of the key that makes it."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from plugins.errors import UserError
from plugins.gateway.tokens import Pass, auth_string, basic, bearer_of, from_basic, load_key, mint, read

KEY, OTHER_KEY = b"a" * 32, b"b" * 32
POD = "ts-run-sft-a1"


def test_a_token_names_the_pod_it_was_made_for() -> None:
    assert read(KEY, mint(KEY, POD, "lium-7")) == Pass(POD, "lium-7")


def test_the_next_attempt_has_another_token() -> None:
    assert mint(KEY, POD, "lium-7") != mint(KEY, "ts-run-sft-a2", "lium-7") != mint(KEY, "ts-run-sft-a2", "lium-8")


def test_a_token_survives_prefects_auth_string_and_an_authorization_header() -> None:
    token = mint(KEY, POD, "lium-7")
    assert ":" not in token
    assert bearer_of(KEY, from_basic(basic(auth_string(POD, token)))) == Pass(POD, "lium-7")


def test_a_token_of_another_key_is_refused() -> None:
    assert read(OTHER_KEY, mint(KEY, POD, "lium-7")) is None


def test_a_token_under_the_name_of_another_pod_is_refused() -> None:
    assert bearer_of(KEY, auth_string("ts-other-sft-a1", mint(KEY, POD, "lium-7"))) is None


@pytest.mark.parametrize("at", range(len(mint(KEY, POD, "lium-7"))))
def test_a_token_with_one_character_changed_is_refused(at: int) -> None:
    token = mint(KEY, POD, "lium-7")
    changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
    assert read(KEY, changed) is None


def test_a_claim_rewritten_under_an_old_seal_is_refused() -> None:
    version, _, seal = mint(KEY, POD, "lium-7").split(".")
    claim = base64.urlsafe_b64encode(b"ts-other-sft-a1\0lium-7").rstrip(b"=").decode()
    assert read(KEY, f"{version}.{claim}.{seal}") is None


@pytest.mark.parametrize("token", ["", ".", "..", "ts1", "ts1..", "ts1.\u00e9.x", "ts2.YQ.YQ", "a" * 10_000])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert read(KEY, token) is None


@pytest.mark.parametrize("header", ["", "Basic", "Basic !!", "Basic \u00e9", "Bearer YTpi", "Basic gICA"])
def test_what_is_no_basic_header_holds_nothing(header: str) -> None:
    assert from_basic(header) == ""


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "../a", "a b", "a" * 200])
def test_a_name_that_cannot_stand_in_a_url_gets_no_token(name: str) -> None:
    with pytest.raises(UserError, match="cannot have a token"):
        mint(KEY, name, "lium-7")


def test_processes_that_make_the_key_at_once_get_the_same(tmp_path: Path) -> None:
    together = Barrier(8)

    def load(file: Path) -> bytes:
        together.wait(30)
        return load_key(file)

    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            file = tmp_path / str(number) / "gateway.key"
            assert set(threads.map(load, [file] * 8)) == {file.read_bytes()}
            assert file.stat().st_mode & 0o777 == 0o600
            assert list(file.parent.iterdir()) == [file]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.key"
    load_key(file)
    file.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        load_key(file)


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.key"
    file.write_text("short")
    file.chmod(0o600)
    with pytest.raises(UserError, match="not a key of the gateway"):
        load_key(file)


def test_a_key_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used"):
        load_key(tmp_path / "file" / "gateway.key")
