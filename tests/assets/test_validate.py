"""`fbmem validate`: the commands of docs/similarity.md, beside labels of `fbmem score` and of an audit."""

import json
import re
import shlex

import polars as pl
import pytest

from fbmem_core.audit.results import ImageKey, open_audit
from fbmem_core.retrieval.label_images import LABELS
from tests.assets.conftest import PROJECT

COMMANDS = [
    shlex.split(line)
    for line in re.findall(r"^\$ (fbmem validate .+)$", (PROJECT / "docs" / "similarity.md").read_text("utf-8"), re.M)
]


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """Labels as `fbmem score` writes them, in the current folder."""
    rows = [
        {"generation": "a", "label": "VM", "full_reference": "horse"},
        {"generation": "b", "label": "FM", "full_reference": "owl", "foreground_reference": "horse"},
        {"generation": "c", "label": "NM", "full_reference": "owl"},
        {"generation": "d", "label": None, "full_reference": "owl"},
    ]
    monkeypatch.chdir(tmp_path)
    pl.DataFrame(rows, schema=LABELS).write_parquet("labels.parquet")
    return tmp_path


def test_the_documented_commands_compare_people_with_a_folder_and_with_an_audit(labels, fbmem, audited):
    of_folder, of_audit = COMMANDS
    (labels / "people.csv").write_text("image,label,reference\na,VM,horse\nb,VM,horse\nc,NM,\nd,NM,\ne,NM,\n")
    run = fbmem(*of_folder[1:])
    assert run.exit_code == 0
    assert "2 of 4 labels agree (6.8% to 93.2%), Cohen's kappa 0.333; the same reference in 2 of 2 copies" in run.stdout
    assert "without a label of fbmem's: 1 images (e)" in run.stderr
    store = audited[0]
    own = open_audit(store).summary_labels().iter_rows(named=True)
    people = [
        {"image": ImageKey(row["method"], row["prompt_id"], row["seed"]).image_id, "label": row["label"]} for row in own
    ]
    (labels / "people.csv").unlink()
    (labels / "people.json").write_text(json.dumps(people))
    options = [{"people.csv": "people.json", "data/store": str(store)}.get(part, part) for part in of_audit[1:]]
    run = fbmem(*options)
    assert run.exit_code == 0, run.stderr
    assert f"{len(people)} of {len(people)} labels agree" in run.stdout
    assert "Cohen's kappa 1.000" in run.stdout


def test_what_cannot_be_compared_is_refused_in_one_line(labels, fbmem):
    (labels / "people.csv").write_text("image,label\nz,VM\n")
    for options, message in (
        (["people.csv", "--labels", "labels.parquet"], "Expected images that fbmem has labelled, but got `z`"),
        (["people.csv", "--labels", "none.parquet"], "labels of `fbmem score`, but got no such file"),
        (["none.csv", "--labels", "labels.parquet"], "a file of labels by people, but got no such file"),
        (["people.csv", "--labels", "people.csv"], "but got no column full_reference, generation"),
        (["people.csv", "--store", "empty"], "Expected an audited checkpoint, but got none"),
    ):
        run = fbmem("validate", *options)
        assert run.exit_code == 2
        assert message in run.stderr
        assert len(run.stderr.splitlines()) == 1
