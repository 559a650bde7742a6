"""Malformed input, 240 files of it: each ends in one line of an FbmemError, or in rows that are all accounted for."""

import csv
import io
import json
import random
import warnings

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from fbmem_core.audit.file import load_audit
from fbmem_core.errors import FbmemError
from fbmem_core.inputs.prompts import read_prompts
from fbmem_core.inputs.references import MANIFEST_NAME, read_references

STATUSES = {"ok", "missing", "unreadable", "placeholder", "duplicate", "unlisted"}
ODD = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n\n", b'"', b"'", b"{", b"]", b":", b"\t", b",",
    b"../" * 40, b"/etc/passwd", b"x" * 5000, b"1e999", b"-1", b"nan", b"null", b"!!python/object/apply:os.system [id]",
    b"*a", b"&a [*a]", "\u2028".encode(), "\U0001f431".encode(), b"<script>", b"'; DROP TABLE prompts; --", b"%s$(id)",
]  # fmt: skip
KEYS = [
    "name",
    "checkpoint",
    "prompts",
    "references",
    "samples_per_prompt",
    "sampling",
    "similarity",
    "clusters",
    "truth",
]
VALUES = [
    None,
    "",
    "x",
    -1,
    10**40,
    1.5,
    float("nan"),
    [],
    [[]],
    {},
    {"a": 1},
    True,
    "\x00",
    "a" * 3000,
    "../..",
    "~",
    "\n",
]


def mutated(content, rng):
    """The bytes with one to three faults."""
    for _ in range(rng.randint(1, 3)):
        at, other = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        content = rng.choice([
            content[:at], content[:at] + content[other:], content[:at] + rng.choice(ODD) + content[at:],
            content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :], content[:other] + content[at:],
            content[:at] + rng.randbytes(9) + content[at:],
        ])  # fmt: skip
    return content


def one_line(error):
    assert "\n" not in str(error)
    assert str(error).startswith("Expected ")


def pick(rng, cases):
    return cases[rng.randrange(len(cases))]


@pytest.mark.parametrize("seed", range(60))
def test_an_audit_file_is_loaded_or_refused(seed, tmp_path, tiny_checkpoint):
    rng = random.Random(seed)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    valid = {"name": "a", "checkpoint": str(tiny_checkpoint), "prompts": "prompts.txt", "references": "."}
    if seed % 2:
        for _ in range(rng.randint(1, 2)):
            valid[pick(rng, KEYS)] = pick(rng, VALUES)
        content = yaml.safe_dump(valid, allow_unicode=True).encode()
    else:
        content = mutated(yaml.safe_dump(valid).encode(), rng)
    (tmp_path / "audit.yaml").write_bytes(content)
    try:
        load_audit(tmp_path / "audit.yaml")
    except FbmemError as error:
        one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000, "name: 2026-99-99", f"name: {'9' * 5000}", "? [a]\n: b", "name: !!binary x",
        "".join(f"k{at}: &k{at} [{', '.join([f'*k{at - 1}'] * 9) if at else 0}]\n" for at in range(9)) + "truth: *k8",
    ],
    ids=["deep", "no date", "a long number", "a list as key", "no base64", "aliases of aliases"],
)  # fmt: skip
def test_yaml_that_means_harm_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "audit.yaml").write_text(text)
    with pytest.raises(FbmemError) as caught:
        load_audit(tmp_path / "audit.yaml")
    one_line(caught.value)
    assert len(str(caught.value)) < 2000


def test_json_that_means_harm_is_a_counted_row(tmp_path):
    lines = ["[" * 100_000, '{"prompt": %s}' % ("9" * 5000), '{"prompt": "a cat"}']
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    prompts, rejected = read_prompts(tmp_path / "prompts.jsonl")
    assert [prompt.prompt for prompt in prompts] == ["a cat"]
    assert [item.item for item in rejected] == ["line 1", "line 2"]


@pytest.mark.parametrize("seed", range(72))
def test_no_row_of_a_prompt_file_is_lost(seed, tmp_path):
    rng = random.Random(seed)
    suffix, valid = pick(rng, list(_prompt_files().items()))
    path = tmp_path / f"prompts{suffix}"
    content = mutated(valid, rng)
    path.write_bytes(content)
    try:
        prompts, rejected = read_prompts(path)
    except FbmemError as error:
        one_line(error)
        return
    assert len(prompts) + len(rejected) == _num_rows(suffix, content)
    assert all(prompt.prompt and prompt.prompt_id for prompt in prompts)
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts)
    assert all(item.reason for item in rejected)


def _prompt_files():
    rows = [{"prompt_id": f"p{at}", "prompt": f"a cat, no. {at}", "kind": "public"} for at in range(6)]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    parquet = io.BytesIO()
    pl.DataFrame(rows).write_parquet(parquet)
    return {
        ".csv": table.getvalue().encode(),
        ".tsv": table.getvalue().replace(",", "\t").encode(),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        ".txt": "".join(f"{row['prompt']}\n" for row in rows).encode(),
        ".parquet": parquet.getvalue(),
    }


def _num_rows(suffix, content):
    if suffix == ".parquet":
        return pq.ParquetFile(io.BytesIO(content)).metadata.num_rows
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")[: None if not text.endswith("\n") else -1]
    if suffix == ".txt":
        return len(lines) if text else 0
    if suffix == ".jsonl":
        return sum(bool(line.strip()) for line in lines)
    delimiter = max(",;\t", key=lines[0].count)
    return (
        sum(bool(row) for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter))
        - 1
    )


@pytest.mark.parametrize("seed", range(54))
def test_no_row_of_a_manifest_is_lost(seed, tmp_path):
    rng = random.Random(seed)
    for name in ("a.png", "b.png"):
        Image.effect_noise((16, 16), 40 + ord(name[0])).convert("RGB").save(tmp_path / name)
    secret = tmp_path.parent / f"{tmp_path.name}-secret.png"
    Image.effect_noise((16, 16), 99).save(secret)
    (tmp_path / "link.png").symlink_to(secret)
    outside = [f"../{secret.name}", str(secret), "link.png", f"sub/../../{secret.name}"]
    odd = [
        "",
        "a\x00.png",
        "a" * 5000,
        ".",
        "gone.png",
        "\U0001f431.png",
        "a.png\n",
        "CON",
        "~/a.png",
        "file:///etc/passwd",
    ]
    paths = ["a.png", "b.png", *rng.sample(outside, 2), *rng.sample(odd, 3)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows(
        [("reference_id", "path", "caption"), *((f"r{at}", path, "a, b") for at, path in enumerate(paths))]
    )
    content = text.getvalue().encode()
    content = mutated(content, rng) if seed % 3 else content
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    try:
        found = list(read_references(tmp_path))
    except FbmemError as error:
        one_line(error)
        return
    assert {reference.status for reference in found} <= STATUSES
    assert all(reference.reason for reference in found if reference.status != "ok")
    assert all(
        reference.path in ("a.png", "b.png", "a.png\n")
        for reference in found
        if reference.status in ("ok", "duplicate")
    )
    if not seed % 3:
        assert len([r for r in found if r.status != "unlisted"]) == len(paths)


@pytest.mark.parametrize("seed", range(54))
def test_no_image_of_a_folder_is_lost(seed, tmp_path):
    rng = random.Random(seed)
    image = Image.effect_noise((24, 18), 60).convert("RGB")
    formats = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
    for number, name in enumerate(formats):
        buffer = io.BytesIO()
        image.save(buffer, format=name)
        (tmp_path / f"{number}.{name.lower()}").write_bytes(mutated(buffer.getvalue(), rng))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of broken metadata
        found = list(read_references(tmp_path))
    assert len(found) == len(formats)
    assert {reference.status for reference in found} <= STATUSES
    assert all((reference.status == "ok") == (reference.reason is None) for reference in found)
