"""Two checkpoints of one audit, from their labels to a check that fails."""

import dagster as dg
import pytest
import yaml

from fbmem_assets.definitions import assets, checks
from fbmem_assets.orchestration.partitions import record_audit
from fbmem_assets.orchestration.resources import AuditStore
from fbmem_core.audit.file import load_audit
from fbmem_core.diffusion.checkpoint import Checkpoint
from fbmem_core.store.schemas import TABLES
from fbmem_core.store.tables import Store
from fbmem_core.store.warehouse import query
from tests.assets.conftest import CANARY, PROJECT, mark_finished

TEXTS = [f"prompt number {at}" for at in range(12)]
VALUES = {"full_similarity": 0.5, "foreground_similarity": 0.5, "background_similarity": 0.5}
REFERENCES = dict.fromkeys(("full_reference_id", "foreground_reference_id", "background_reference_id"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def blank(table):
    """A row of nothing but nulls."""
    return {name: None for name in TABLES[table].columns if name != "checkpoint"}


@pytest.fixture
def audited(store, tmp_path):
    """Puts a checkpoint with given labels into the store, one list of them a prompt, and materializes the stage."""

    def put(name, number, of_prompts, *, texts=TEXTS, **changes):
        settings = {"name": name, "checkpoint": str(CANARY / "checkpoint"), "prompts": str(CANARY / "prompts.csv"),
                    "references": str(CANARY / "references"), **changes}  # fmt: skip
        settings["similarity"] = {"rule": "paper"} | settings.get("similarity", {})
        file = tmp_path / "audit.yaml"
        file.write_text(yaml.safe_dump(settings), "utf-8")
        found = Checkpoint("here", tmp_path, f"{number:064x}"[::-1], "StableDiffusionPipeline")
        key = record_audit(load_audit(file), found, store)
        nothing = blank("prompts") | {"reference_ids": [], "urls": []}
        rows = [{**nothing, "audit": name, "prompt_id": str(at), "prompt": text} for at, text in enumerate(texts)]
        store.write("prompts", key, rows)
        images = [(str(at), seed, label) for at, some in enumerate(of_prompts) for seed, label in enumerate(some)]
        store.write("labels", key, [
            {**blank("labels"), "method": method, "prompt_id": prompt_id, "seed": seed, "masking": masking,
             "rule": rule, **VALUES,
             **REFERENCES, "label": label if (method, masking, rule) == ("none", "masked", "paper") else "VM"}
            for prompt_id, seed, label in images
            for method, masking, rule in (("none", "masked", "paper"), ("none", "masked", "released"),
                                         ("none", "composite", "paper"), ("nemo", "masked", "paper"))
        ])  # fmt: skip
        mark_finished(store, key, "prompts", "labels")
        done = dg.materialize(
            [*assets, *checks],
            partition_key=key,
            resources={"store": AuditStore(root=str(store.root))},
            selection=dg.AssetSelection.groups("audit_diff"),
            instance=instance,
        )
        judged = done.get_asset_check_evaluations()
        return key, judged[0] if judged else None

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(
            "checkpoint", [f"{n}-{f'{at:064x}'[::-1][:12]}" for n in "ab" for at in range(9)]
        )
        yield put


def test_a_first_checkpoint_has_nothing_to_be_compared_with(audited, store):
    key, judged = audited("a", 1, [["NM", "VM"]] * 12)
    assert judged is None  # not applicable: never green for nothing
    assert store.read("checks", key)["status"].to_list() == ["not_applicable"]
    assert store.read("audit_diff", key).is_empty()
    [rate] = store.read("memorization_rates", key).to_dicts()
    assert (rate["share"], rate["previous"], rate["p_value"]) == (0.5, None, None)


def test_a_real_rise_fails_the_check_and_names_the_prompts(audited, store):
    first, _ = audited("a", 1, [["VM"] * 2] + [["NM"] * 2] * 11)
    second, judged = audited("a", 2, [["VM"] * 2] * 6 + [["NM"] * 2] * 6)
    assert (judged.passed, judged.severity) == (False, dg.AssetCheckSeverity.ERROR)
    facts = {name: value.value for name, value in judged.metadata.items()}
    assert facts["previous"] == first
    assert facts["newly_memorized"] == "1, 2, 3, 4, 5"
    assert (facts["share_before"], facts["share_after"], facts["p_value"]) == (1 / 12, 0.5, 2**-5)
    diff = store.read("audit_diff", second)
    assert dict(diff["change"].value_counts().iter_rows()) == {"newly_memorized": 5, "same": 7}


@pytest.mark.parametrize(
    ("after", "changes", "passed"),
    [
        ([["VM"] * 2] * 3 + [["NM"] * 2] * 9, {}, True),  # two prompts more: chance gives that every fourth time
        ([["VM"] * 2] * 6 + [["NM"] * 2] * 6, {"diff": {"max_rise": 0.5}}, True),
        ([["VM"] * 2] * 6 + [["NM"] * 2] * 6, {"diff": {"significance": 0.01}}, True),
        ([["NM"] * 2] * 12, {}, True),
    ],
    ids=["not significant", "a small rise", "not as significant as asked", "a fall"],
)
def test_noise_and_small_rises_pass(audited, after, changes, passed):
    audited("a", 1, [["VM"] * 2] + [["NM"] * 2] * 11)
    assert audited("a", 2, after, **changes)[1].passed == passed


def test_another_setting_makes_it_a_warning_that_names_it(audited):
    audited("a", 1, [["NM"] * 2] * 12)
    _, judged = audited("a", 2, [["VM"] * 2] * 12, similarity={"tau": 0.7})
    assert (judged.passed, judged.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert judged.metadata["differing_settings"].value == "similarity.tau"


def test_the_checkpoint_before_is_of_the_same_audit_and_was_audited(audited, store):
    first, _ = audited("a", 1, [["NM"]] * 12)
    audited("b", 2, [["VM"]] * 12)
    third, _ = audited("a", 3, [["NM"]] * 12)
    audited("a", 1, [["NM"]] * 12)  # again
    assert store.read("memorization_rates", third)["previous"].to_list() == [first]
    assert store.read("memorization_rates", first)["previous"].to_list() == [None]


def test_the_documented_query_shows_which_checkpoint_memorizes_what(audited, store):
    import re

    one, _ = audited("a", 1, [["VM"], ["NM"]], texts=["owl", "cat"])
    two, _ = audited("b", 2, [["NM"], ["NM"], ["BM"]], texts=["cat", "owl", "dog"])
    text = (PROJECT / "docs" / "questions.md").read_text("utf-8")
    [sql] = re.findall(r"```sql\n(PIVOT .+?)\n```", text, flags=re.DOTALL)
    assert query(store, sql).to_dicts() == [
        {"prompt": "cat", one: "NM", two: "NM"},
        {"prompt": "dog", one: None, two: "BM"},
        {"prompt": "owl", one: "VM", two: "NM"},
    ]
