"""The manifest and its signature, made and checked by minisign itself."""

import json
import shutil
import subprocess

import pytest

from fbmem_core.errors import InputError
from fbmem_core.store.manifest import MANIFEST, check_signature, sign, write_manifest
from tests.core.evidence import KEY, drawn_store

needs_minisign = pytest.mark.skipif(shutil.which("minisign") is None, reason="no minisign: apt-get install minisign")


@pytest.fixture
def manifest(tmp_path):
    store = drawn_store(tmp_path / "store")
    report = tmp_path / "report.html"
    report.write_text("a report")
    return write_manifest(store, KEY, report)


def _keys(folder, name):
    paths = folder / f"{name}.pub", folder / f"{name}.sec"
    command = ["minisign", "-G", "-W", "-p", paths[0], "-s", paths[1]]
    subprocess.run(command, check=True, capture_output=True)
    return paths


@needs_minisign
def test_a_signature_holds_for_its_key_and_its_manifest_alone(manifest, tmp_path):
    public, secret = _keys(tmp_path, "ours")
    stranger, _ = _keys(tmp_path, "stranger")
    assert sign(manifest, secret).is_file()
    check_signature(manifest, public)
    with pytest.raises(InputError, match="a signature that minisign accepts"):
        check_signature(manifest, stranger)
    content = json.loads(manifest.read_text("utf-8"))
    name = next(iter(content["files"]))
    content["files"][name] = "0" * 64
    manifest.write_text(json.dumps(content), "utf-8")
    with pytest.raises(InputError, match="a signature that minisign accepts"):
        check_signature(manifest, public)


@needs_minisign
def test_a_manifest_without_a_signature_is_no_signed_one(manifest, tmp_path):
    public, _ = _keys(tmp_path, "ours")
    with pytest.raises(InputError, match="minisign"):
        check_signature(manifest, public)


def test_a_key_that_is_not_there_is_one_line(manifest, tmp_path):
    with pytest.raises(InputError, match=r"a key of minisign, but got no such file"):
        sign(manifest, tmp_path / "none.sec")
    assert manifest.name == MANIFEST
