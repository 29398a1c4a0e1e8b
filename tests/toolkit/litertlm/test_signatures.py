"""Signed exports: made with a private key, trusted with its public key alone; openssl agrees."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from bundles import fill

from gemma_edge import cli
from toolkit.base.errors import UsageError
from toolkit.base.signatures import read_signer, read_truster
from toolkit.bundle.write import write_bundle
from toolkit.litertlm.header import read_header


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs by openssl, one by ssh-keygen, one of another kind, one with a passphrase."""
    folder = tmp_path_factory.mktemp("keys")
    if not shutil.which("openssl") or not shutil.which("ssh-keygen"):
        pytest.skip("needs openssl and ssh-keygen")
    for name in ("ours", "theirs"):
        _run(folder, f"openssl genpkey -algorithm ed25519 -out {name}.pem")
        _run(folder, f"openssl pkey -in {name}.pem -pubout -out {name}.public.pem")
    _run(folder, "ssh-keygen -q -t ed25519 -N '' -f ssh")
    _run(folder, "openssl genpkey -algorithm ed448 -out other.pem")
    _run(folder, "openssl pkey -in other.pem -pubout -out other.public.pem")
    _run(folder, "openssl genpkey -algorithm ed25519 -aes256 -pass pass:x -out locked.pem")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signed") / "bundle"
    write_bundle(path, fill)
    return path


def _run(folder: Path, command: str) -> str:
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def export(bundle: Path, path: Path, *options: str) -> Path:
    assert cli.main(["export", str(bundle), "-o", str(path), "--quiet", *options]) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("key", "public"), [("ours.pem", "ours.public.pem"), ("ssh", "ssh.pub")])
def test_a_signed_export_is_trusted_with_its_key_and_with_no_other(
    keys: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, public: str
) -> None:
    path = export(bundle, tmp_path / "model.litertlm", "--sign", str(keys / key))
    other = ["--trust", str(keys / "theirs.public.pem")]
    assert cli.main(["check", str(path), "--trust", str(keys / public)]) == 0
    assert cli.main(["check", str(path), *other, "--trust", str(keys / public)]) == 0
    capsys.readouterr()
    assert cli.main(["check", str(path), *other, "--json"]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault["fault"] == "signature"
    again = export(bundle, tmp_path / "again.litertlm", "--sign", str(keys / key))
    assert again.read_bytes() == path.read_bytes()


def test_openssl_finds_the_signature_good(keys: Path, bundle: Path, tmp_path: Path) -> None:
    path = export(bundle, tmp_path / "model.litertlm", "--sign", str(keys / "ours.pem"))
    system = read_header(path).metadata.system
    (tmp_path / "signed").write_text(f"gemma-edge-litertlm/1 {system['header_sha256']}")
    (tmp_path / "signature").write_bytes(bytes.fromhex(system["signature"]))
    public = keys / "ours.public.pem"
    said = _run(tmp_path, f"openssl pkeyutl -verify -pubin -inkey {public} -rawin -in signed -sigfile signature")
    assert "Verified Successfully" in said


def test_what_is_not_signed_or_changed_after_it_was_is_not_trusted(
    keys: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = ["--trust", str(keys / "ours.public.pem"), "--json"]
    plain = export(bundle, tmp_path / "plain.litertlm")
    signed = export(bundle, tmp_path / "signed.litertlm", "--sign", str(keys / "ours.pem"))
    small = export(bundle, tmp_path / "small.litertlm", "--size", "small", "--sign", str(keys / "ours.pem"))
    # A good signature of another file.
    data = signed.read_bytes()
    systems = [read_header(path).metadata.system for path in (signed, small)]
    signed.write_bytes(data.replace(systems[0]["signature"].encode(), systems[1]["signature"].encode()))
    capsys.readouterr()
    for path, found in ((plain, "none"), (signed, "made with another key, or for another file")):
        assert cli.main(["check", str(path), *trust]) == 1
        faults = json.loads(capsys.readouterr().out)["faults"]
        assert [(fault["fault"], fault["found"]) for fault in faults] == [("signature", found)]
    # The same number in other digits: each bit of a file counts.
    digits = systems[0]["signature"]
    signed.write_bytes(data.replace(digits.encode(), digits.upper().encode()))
    for options in (trust, ["--json"]):
        assert cli.main(["check", str(signed), *options]) == 1
        faults = json.loads(capsys.readouterr().out)["faults"]
        assert ("signature", "another form") in [(fault["fault"], fault["found"]) for fault in faults]
    signed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert cli.main(["check", str(signed), *trust]) == 1
    assert any("sha256" in fault["found"] for fault in json.loads(capsys.readouterr().out)["faults"])


@pytest.mark.parametrize("name", ["other.pem", "locked.pem", "ours.public.pem", "ssh.pub", "missing"])
def test_what_is_no_private_key_signs_nothing(keys: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_signer(keys / name)


@pytest.mark.parametrize("name", ["other.public.pem", "ours.pem", "ssh", "missing"])
def test_what_is_no_public_key_is_not_trusted(keys: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_truster(keys / name)


def test_a_bundle_cannot_be_signed(keys: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(bundle), "--trust", str(keys / "ours.public.pem")]) == 2
    assert "gemma-edge export --sign makes a signed file" in capsys.readouterr().err
