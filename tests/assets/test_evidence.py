"""What an audit ends with: a status, a label table whatever failed later, a report, a record that can be verified."""

import json
import shutil

import polars as pl
import pytest
import yaml

from fbmem_core.store.tables import Store
from tests.assets.conftest import VARIABLES


@pytest.fixture(scope="module")
def whole_tiny(tiny_audit, tmp_path_factory):
    """(finished call, store, partition) of a whole audit of two prompts: too few to calibrate anything on."""
    import os

    from click.testing import CliRunner

    from fbmem_assets.commands.main import main

    store = tmp_path_factory.mktemp("whole_tiny") / "store"
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, "")
            patch.delenv(name)
        run = CliRunner().invoke(main, ["audit", str(tiny_audit), "--store", str(store)])
        assert os.environ.get("DAGSTER_HOME")
    [key] = Store(store).partitions("checkpoints")
    return run, store, key


def test_a_small_audit_ends_well_and_says_what_it_left_out_and_why(whole_tiny):
    run, store, key = whole_tiny
    assert run.exit_code == 0, run.stderr
    assert "| kind | VM | FM | BM | NM | undecided |" in run.stdout
    [line] = [line for line in run.stderr.splitlines() if line.startswith("left out: ")]
    assert "20 non-memorized prompts are needed" in line
    assert "emitted no result" not in run.stderr
    records = Store(store).read("records", key)
    left_out = set(records.filter(status="left_out")["asset"])
    assert {"activation_statistics", "neurons", "mitigated_labels", "attacks"} <= left_out
    assert set(records.filter(status="finished")["asset"]) >= {"labels", "seed_agreement", "memorization_rates"}
    assert "activation_statistics" in Store(store).read("rejected", key)["item"].to_list()


def test_the_last_line_is_the_path_of_the_report(whole_tiny):
    run, store, key = whole_tiny
    path = store / "reports" / key / "report.html"
    assert run.stdout.splitlines()[-1] == f"report: {path}"
    page = path.read_text("utf-8")
    numbers = json.loads((path.parent / "report.json").read_text("utf-8"))
    assert numbers["headline"]["sentence"] in page
    assert numbers["headline"]["num_images"] + numbers["counts"]["undecided"] == 4


def test_the_closing_question_counts_images(whole_tiny, fbmem):
    run, store, _ = whole_tiny
    [line] = [line for line in run.stdout.splitlines() if line.startswith("ask: ")]
    question = line.split('"')[1]
    rows = json.loads(fbmem("sql", question, "--store", store, "--format", "json").stdout)
    assert sum(row["images"] for row in rows) == 4


def test_checks_without_anything_to_check_are_not_green(whole_tiny):
    _, store, key = whole_tiny
    checks = {row["check_name"]: row for row in Store(store).read("checks", key).iter_rows(named=True)}
    assert checks["labels_agree_with_truth"]["status"] == "not_applicable"
    statuses = Store(store).read("checks", key).filter(asset="labels", check_name="every_generation_is_labelled")
    assert statuses["status"].to_list() == ["passed"]


def test_every_finding_joins_to_files_whose_hashes_agree(whole_tiny, fbmem):
    from fbmem_core.store.images import file_sha256

    _, store, _ = whole_tiny
    rows = json.loads(fbmem("sql", "from findings", "--store", store, "--format", "json").stdout)
    assert len(rows) == 4
    for row in rows:
        assert file_sha256(store / row["path"]) == row["sha256"]
        if row["reference_path"] is not None:
            assert file_sha256(store / row["reference_path"]) == row["reference_sha256"]


def test_an_untouched_store_is_verified_and_a_moved_one_too(whole_tiny, fbmem, tmp_path):
    _, store, key = whole_tiny
    run = fbmem("verify", store)
    assert (run.exit_code, run.stdout) == (0, f"{key}: 0 differences\n"), run.stdout
    moved = tmp_path / "colleague"
    shutil.copytree(store, moved)
    assert fbmem("verify", moved).exit_code == 0
    assert fbmem("sql", "select count(*) as n from findings", "--store", moved).stdout == "n\n4\n"


def _altered(table, key, store, change):
    """Change a table's rows behind the back of whatever keeps records."""
    kept = Store(store)
    for path in kept.table_dir(table, key).glob("*.parquet"):
        frame = pl.read_parquet(path)
        if len(frame):
            change(frame).write_parquet(path)
            return


def _one_pixel(store, key):
    from PIL import Image

    path = next((store / "images" / "generations" / key).glob("none-0-0-*.png"), None)
    path = path or sorted((store / "images" / "generations" / key).glob("none-*.png"))[0]
    with Image.open(path) as image:
        changed = image.convert("RGB")
    red, green, blue = changed.getpixel((0, 0))
    changed.putpixel((0, 0), (255 - red, green, blue))
    changed.save(path)


def _one_score(store, key):
    raised = pl.when(pl.int_range(pl.len()) == 0).then(pl.col("full_similarity") + 0.3).otherwise("full_similarity")
    _altered("similarities", key, store, lambda frame: frame.with_columns(raised.alias("full_similarity")))


def _one_setting(store, key):
    _altered("audit_settings", key, store, lambda frame: frame.with_columns(pl.lit(0.5).alias("tau")))


def _one_label(store, key):
    other = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("VM")).otherwise("label")
    _altered("labels", key, store, lambda frame: frame.with_columns(other.alias("label")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_one_pixel, "differs: image none/"),
        (_one_score, "differs: similarity none/"),
        (_one_setting, "differs: setting tau: "),
        (_one_label, "differs: label none/"),
    ],
)
def test_what_was_altered_is_named(whole_tiny, fbmem, tmp_path, change, named):
    _, store, key = whole_tiny
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    change(copy, key)
    run = fbmem("verify", copy)
    assert run.exit_code == 3
    assert named in run.stdout


def test_one_altered_weight_is_named(whole_tiny, tiny_checkpoint, fbmem, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    _, store, key = whole_tiny
    copy, model = tmp_path / "store", tmp_path / "model"
    shutil.copytree(store, copy)
    shutil.copytree(tiny_checkpoint, model)
    record = copy / "audits" / f"{key}.json"
    record.write_text(record.read_text("utf-8").replace(str(tiny_checkpoint), str(model)), "utf-8")
    run = fbmem("verify", copy, "--sample", 1)
    assert run.exit_code == 0, run.stdout
    [file] = sorted((model / "unet").glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[0]
    torch.flatten(weights[name])[0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    run = fbmem("verify", copy, "--sample", 1)
    assert run.exit_code == 3
    assert "differs: weights: " in run.stdout


def test_an_image_is_made_again(whole_tiny, fbmem):
    _, store, _ = whole_tiny
    row = Store(store).read("generations", Store(store).partitions("checkpoints")[0]).row(0, named=True)
    run = fbmem("reproduce", f"{row['prompt_id']}/{row['seed']}", "--store", store)
    assert run.exit_code == 0, run.stdout
    assert "the same image" in run.stdout
    assert row["sha256"] in run.stdout


def test_a_later_registration_with_another_threshold_does_not_change_what_was_used(
    whole_tiny, tiny_audit, fbmem, tmp_path
):
    _, store, key = whole_tiny
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    audit = yaml.safe_load(tiny_audit.read_text())
    audit["similarity"]["tau"] = 0.5
    other = tiny_audit.with_name("other.yaml")
    other.write_text(yaml.safe_dump(audit))
    assert fbmem("register", other, "--store", copy).stdout.strip() == key
    rows = json.loads(fbmem("sql", "select tau from audits", "--store", copy, "--format", "json").stdout)
    assert rows == [{"tau": 0.8}]


def test_a_gate_ends_with_a_status_of_its_own(whole_tiny, fbmem, tiny_audit, tmp_path):
    _, store, key = whole_tiny
    from fbmem_assets.commands.audit import REACHED, _gate
    from fbmem_assets.orchestration.resources import AuditStore

    copies = Store(store).read("labels", key).filter(masking="masked", rule="paper", method="none")["label"]
    expected = REACHED if copies.is_in(["VM", "FM", "BM"]).any() else 0
    assert _gate(AuditStore(root=str(store)), key, ["copy"]) == expected


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("prompt_id,kind\n0,cat\n", "a column `label` of true labels"),
        ("prompt_id,label\n0,XX\n", "labels VM, FM, BM, NM"),
        ("prompt_id,label\nelsewhere,VM\n", "true labels of prompts of this audit"),
    ],
)
def test_an_unusable_truth_file_ends_in_one_line_before_sampling(tiny_audit, fbmem, tmp_path, truth, expected):
    folder = shutil.copytree(tiny_audit.parent, tmp_path / "audit")
    (folder / "truth.csv").write_text(truth)
    audit = yaml.safe_load((folder / "audit.yaml").read_text()) | {"truth": "truth.csv"}
    (folder / "audit.yaml").write_text(yaml.safe_dump(audit))
    run = fbmem("audit", folder / "audit.yaml", "--store", tmp_path / "store", "--until", "generations")
    assert run.exit_code == 2
    assert expected in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "store" / "images").exists()


def test_a_stage_before_its_parents_ends_in_one_line_that_names_them(tiny_audit, fbmem, tmp_path):
    import dagster as dg

    from fbmem_assets.definitions import assets, checks
    from fbmem_assets.orchestration.resources import AuditStore

    key = fbmem("register", tiny_audit, "--store", tmp_path / "store").stdout.strip()
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("checkpoint", [key])
        done = dg.materialize(
            [*assets, *checks],
            partition_key=key,
            resources={"store": AuditStore(root=str(tmp_path / "store"))},
            selection=dg.AssetSelection.assets("labels"),
            instance=instance,
            raise_on_error=False,
        )
    assert not done.success
    [failure] = [event for event in done.all_events if event.is_step_failure]
    cause = failure.event_specific_data.error
    while cause.cause is not None:
        cause = cause.cause
    assert "none of `similarities`" in cause.message
    assert "Materialize `similarities` first" in cause.message
    assert done.get_asset_check_evaluations() == []


def test_a_truth_file_as_documented_has_its_share_beside_the_labels(whole_tiny, tmp_path):
    from fbmem_assets.orchestration.resources import AuditStore
    from fbmem_assets.stages.labels import label_table

    _, store, key = whole_tiny
    audit = AuditStore(root=str(store)).open(key)
    prompt_ids = audit.read("prompts")["prompt_id"].to_list()
    truth = tmp_path / "truth.csv"
    truth.write_text("prompt_id,kind,label\n" + "".join(f"{name},animals,NM\n" for name in prompt_ids))
    audit.config = audit.config.model_copy(update={"truth": truth})
    first = audit.config.similarity
    [row] = label_table(audit).filter(masking=first.masking[0], rule=first.rule[0]).to_dicts()
    assert (row["kind"], row["true_label"]) == ("animals", "NM")
    assert row["true_share"] == row["NM"] / 4


def test_a_misspelt_kind_of_samples_is_said(tiny_audit, fbmem, tmp_path):
    audit = yaml.safe_load(tiny_audit.read_text()) | {"samples_by_kind": {"verbatm": 20}}
    file = tiny_audit.with_name("misspelt.yaml")
    file.write_text(yaml.safe_dump(audit))
    run = fbmem("audit", file, "--store", tmp_path / "store", "--until", "prompts")
    assert run.exit_code == 0
    assert "warning: every_kind_of_samples_is_there: samples_by_kind names verbatm, which no prompt has" in run.stderr
