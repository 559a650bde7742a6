"""A fuzzer over every reader: whatever a file holds, it ends in rows that are all accounted for, or in one line."""

import csv
import io
import json
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fbmem_core.audit.file import load_audit
from fbmem_core.errors import FbmemError
from fbmem_core.inputs.prompts import read_prompts
from fbmem_core.inputs.references import read_references

CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.text(max_size=5), max_size=3),  # noqa: E501
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.sampled_from(["nan", '"', "a, b", "\ud800", "\x00", "a\nb"]),  # noqa: E501
)  # fmt: skip
NAMES = st.sampled_from(
    ["prompt", "caption", "Text", "id", "index", "prompt_id", "url", "urls", "kind", "x", "", "reference_ids"]
)
ROWS = st.lists(st.dictionaries(NAMES, CELLS, max_size=5), max_size=6)
FAULTS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 60), st.binary(max_size=6)), max_size=3)


def json_lines(rows):
    return ".jsonl", "\n".join(json.dumps(row) for row in rows).encode("utf-8", "surrogatepass")


def json_array(rows):
    return ".json", json.dumps(rows).encode("utf-8", "surrogatepass")


def comma_separated(rows):
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["prompt"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return ".csv", text.getvalue().encode("utf-8", "surrogatepass")


def plain_text(rows):
    return ".txt", "\n".join(str(row) for row in rows).encode("utf-8", "surrogatepass")


def parquet(rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) or None for row in rows]  # Parquet holds no empty object
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):
            columns[name] = pa.array([repr(value).encode("utf-8", "replace") for value in values])
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    return ".parquet", content.getvalue()


def broken(content, faults):
    for place, length, added in faults:
        at = place % (len(content) + 1)
        content = content[:at] + added + content[at + length :]
    return content


def one_line(error):
    text = str(error)
    assert "\n" not in text
    assert text.startswith("Expected ")
    assert len(text) < 1500


def check_prompts(form, rows, faults):
    suffix, content = form(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"p{suffix}"
        path.write_bytes(broken(content, faults))
        try:
            prompts, rejected = read_prompts(path)
        except FbmemError as error:
            one_line(error)
            return
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts)
    assert len({item.item for item in rejected}) == len(rejected)
    for prompt in prompts:
        assert prompt.prompt
        for text in (prompt.prompt, prompt.prompt_id, prompt.kind or "", prompt.source or "", *prompt.urls):
            text.encode()
    if not faults and form is not plain_text:
        assert len(prompts) + len(rejected) >= len(
            [row for row in rows if form is not comma_separated or any(row.values())]
        )


def picture(kind, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


KINDS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA"]
FILES = st.lists(st.tuples(st.sampled_from(KINDS), FAULTS), min_size=1, max_size=4)


def check_references(files, as_tar, faults):
    contents = [
        (f"{number}.{kind.lower()}", broken(picture(kind, number), f)) for number, (kind, f) in enumerate(files)
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of broken metadata
        if as_tar:
            with tarfile.open(Path(folder) / "a.tar", "w") as tar:
                for name, content in contents:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            path = Path(folder) / "a.tar"
            path.write_bytes(broken(path.read_bytes(), faults))
        else:
            for name, content in contents:
                (Path(folder) / name).write_bytes(content)
        try:
            found = list(read_references(folder))
        except FbmemError as error:
            one_line(error)
            return
    assert all((reference.status == "ok") == (reference.reason is None) for reference in found)
    assert len({reference.reference_id for reference in found}) == len(found)
    if not as_tar or not faults:
        assert len(found) == len(contents)


AUDITS = st.dictionaries(
    st.sampled_from(["name", "checkpoint", "prompts", "references", "sampling", "similarity", "samples_by_kind", "truth", "x"]),  # noqa: E501
    st.recursive(CELLS, lambda inner: st.dictionaries(st.text(max_size=6), inner, max_size=2), max_leaves=4),
)  # fmt: skip


def check_audit(values, faults):
    try:
        content = yaml.safe_dump(values).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_bytes(broken(content, faults))
        try:
            load_audit(path)
        except FbmemError as error:
            assert "\n" not in str(error)


FORMS = st.sampled_from([json_lines, json_array, comma_separated, plain_text, parquet])


def fuzz(num):
    def run(*strategies):
        def decorate(function):
            quick = settings(max_examples=num, deadline=None, suppress_health_check=list(HealthCheck))
            return quick(given(*strategies)(function))

        return decorate

    return run


for NUM, MARKS in ((34, ()), (340, (pytest.mark.slow,))):
    NAME = "" if NUM == 34 else "_long"

    @fuzz(NUM)(FORMS, ROWS, FAULTS)
    def prompts_test(form, rows, faults):
        check_prompts(form, rows, faults)

    @fuzz(NUM)(FILES, st.booleans(), FAULTS)
    def references_test(files, as_tar, faults):
        check_references(files, as_tar, faults)

    @fuzz(NUM)(AUDITS, FAULTS)
    def audits_test(values, faults):
        check_audit(values, faults)

    for TEST, WHAT in ((prompts_test, "prompts"), (references_test, "references"), (audits_test, "audit_files")):
        NAMED = f"test_no_row_of_{WHAT}_is_lost_and_no_traceback_is_shown{NAME}"
        globals()[NAMED] = MARKS[0](TEST) if MARKS else TEST
    del prompts_test, references_test, audits_test, TEST
