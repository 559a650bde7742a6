"""The report: what it says is what the tables say, it needs nothing else, and shows only what it may."""

import csv
import json
import re

import pytest

from fbmem_core.errors import InputError
from fbmem_core.report.evidence import gather
from fbmem_core.report.intervals import share_over_prompts
from fbmem_core.report.page import write_report
from fbmem_core.report.reviews import agreement_of_reviewers, read_reviews, summary_of_reviews, write_review
from fbmem_core.store.manifest import MANIFEST, write_manifest
from tests.core.evidence import DRAWN, KEY, PROMPT_WITH_MARKUP, blank, drawn_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return drawn_store(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def page(store):
    path = write_report(store, gather(store, KEY))
    return path.read_text("utf-8")


def test_the_first_sentence_says_what_was_found_and_how_sure_it_is(store, page):
    headline = gather(store, KEY).headline
    assert headline["sentence"] == (
        "3 of 4 prompts reproduce training images: 1 whole, 1 the foreground alone, 1 the background alone."
    )
    assert headline["images"].startswith("5 of 11 images are copies (45%, 95 % interval ")
    assert headline["prompts"] == "3 of 4 prompts (75%, exact 95 % interval 19% to 99%)"
    first = page.split("</header>")[0]
    assert headline["sentence"] in first
    assert "1 of 2 checks that apply passed, 1 failed; 1 do not apply" in first


def test_nothing_found_is_said_with_its_upper_bound(tmp_path):
    store = drawn_store(tmp_path, prompts=DRAWN[3:])
    headline = gather(store, KEY).headline
    assert headline["sentence"] == "None of 1 prompts reproduces a training image."
    assert headline["images"] == "0 of 3 images are copies (0%, 95 % interval 0% to 98%, resampled over prompts)"
    assert "No prompt brings forth a copy." in write_report(store, gather(store, KEY)).read_text("utf-8")


def test_the_page_needs_no_network_and_every_picture_has_a_text(page):
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert "default-src 'none'" in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) > 20
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_what_a_prompt_holds_is_text(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_a_card_can_be_cited_and_says_everything(page):
    card = page.split('<details class="card" id="owl"')[1].split("</details>")[0]
    for text in ("2 of 3 seeds are copies", "9% to 99%", "Margin to the threshold 0.150", "runner-up r2 at 0.150",
                 "https://pictures.example/r0", "fbmem reproduce owl/0 --partition", "seed 2"):  # fmt: skip
        assert text in card
    order = re.findall(r'<details class="card" id="(\w+)"', page)
    assert order == ["owl", "mug", "bay"]  # worst first


def test_csv_and_json_hold_the_same_numbers(store, page):
    folder = store.root / "reports" / KEY
    with (folder / "findings.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["prompt_id"]: row for row in csv.DictReader(file)}
    numbers = json.loads((folder / "report.json").read_text("utf-8"))
    assert {name: (int(row["k"]), int(row["n"])) for name, row in rows.items()} == {
        "owl": (2, 3), "mug": (2, 2), "bay": (1, 3),
    }  # fmt: skip
    assert [row["prompt_id"] for row in numbers["findings"]] == list(rows)
    assert numbers["counts"] == {"VM": 2, "FM": 2, "BM": 1, "NM": 6, "undecided": 1}


def test_a_redacted_report_shows_no_work_and_no_name_but_hashes(store):
    path = write_report(store, gather(store, KEY), redacted=True)
    texts = [file.read_text("utf-8") for file in path.parent.iterdir()]
    row = store.read("generations", KEY).row(0, named=True)
    for text in texts:
        for word in (
            PROMPT_WITH_MARKUP,
            "script&gt;alert",
            "a mug",
            "pictures.example",
            "data:image",
            "owl",
            str(store.root),
        ):
            assert word not in text
    assert any(row["sha256"] in text for text in texts)
    assert "reference-0001" in texts[0] + texts[1] + texts[2]


def test_two_checkpoints_are_compared_by_the_texts_of_their_prompts(tmp_path):
    store = drawn_store(tmp_path)
    for table in ("checkpoints", "prompts", "labels", "audit_settings", "generations", "masks", "reference_images"):
        rows = [
            {name: value for name, value in row.items() if name != "checkpoint"}
            for row in store.read(table, KEY).to_dicts()
        ]
        if table == "labels":
            rows = [row | ({"label": "NM"} if row["prompt_id"] == "owl" else {}) for row in rows]
        store.write(table, "drawn-older", rows, shard="none")
    changes = gather(store, KEY, compare="drawn-older").changes
    assert [(row["prompt_id"], row["change"]) for row in changes["rows"]] == [("owl", "newly_memorized")]
    assert "newly memorized" in write_report(store, gather(store, KEY, compare="drawn-older")).read_text("utf-8")
    with pytest.raises(InputError, match="an audited checkpoint to compare with, but got `nowhere`"):
        gather(store, KEY, compare="nowhere")


def test_many_findings_are_sampled_and_the_page_says_so(tmp_path):
    many = [(f"p{number}", f"prompt {number}", DRAWN[0][2]) for number in range(260)]
    store = drawn_store(tmp_path, prompts=many)
    path = write_report(store, gather(store, KEY))
    assert path.stat().st_size < 25_000_000
    assert "110 further prompts with copies have no card here" in path.read_text("utf-8")


def test_the_interval_over_prompts_is_wider_than_one_over_images():
    counts = [(20, 20)] * 5 + [(0, 20)] * 5  # two hundred images, but only ten prompts
    low, high = share_over_prompts(counts)
    assert low < 0.25
    assert high > 0.75


def test_a_verdict_is_kept_beside_the_label_and_counted(tmp_path):
    store = drawn_store(tmp_path)
    before = store.read("labels", KEY)
    write_review(store, KEY, prompt_id="owl", reviewer="Ada", verdict="confirmed", comment="the same owl")
    write_review(store, KEY, prompt_id="owl", reviewer="Ada", verdict="unclear")
    write_review(store, KEY, prompt_id="mug", reviewer="Ada", verdict="rejected")
    evidence = gather(store, KEY)
    assert [(row["prompt_id"], row["verdict"]) for row in evidence.reviews] == [("mug", "rejected"), ("owl", "unclear")]
    assert summary_of_reviews(evidence.reviews, 3) == "2 of 3 findings are reviewed: 1 rejected, 1 unclear"
    assert store.read("labels", KEY).equals(before)
    assert "2 of 3 findings are reviewed" in write_report(store, evidence).read_text("utf-8")


def test_verdicts_come_from_a_table_or_none_of_them_does(tmp_path):
    store = drawn_store(tmp_path)
    file = tmp_path / "reviews.csv"
    file.write_text("prompt_id,reviewer,verdict,comment\nowl,Ada,confirmed,\nmug,Ada,,\nbay,Ada,maybe,\n", "utf-8")
    with pytest.raises(InputError, match="a usable review in row 2, but got `maybe`"):
        read_reviews(store, KEY, file)
    assert store.read("reviews", KEY).is_empty()
    file.write_text(file.read_text("utf-8").replace("maybe", "rejected"), "utf-8")
    assert read_reviews(store, KEY, file) == 2


def test_the_agreement_of_two_reviewers_is_cohen_s_kappa():
    verdicts = {"Ada": "ccrr", "Bob": "crrr"}
    names = {"c": "confirmed", "r": "rejected"}
    rows = [
        {"reviewer": reviewer, "prompt_id": str(at), "verdict": names[letter]}
        for reviewer, letters in verdicts.items()
        for at, letter in enumerate(letters)
    ]
    [row] = agreement_of_reviewers(rows)
    assert (row["num_findings"], row["num_same"], row["kappa"]) == (4, 3, pytest.approx(0.5))


def test_the_manifest_names_every_file_that_the_findings_rest_on(store, page):
    path = write_manifest(store, KEY, store.root / "reports" / KEY / "report.html")
    content = json.loads(path.read_text("utf-8"))
    assert path.name == MANIFEST
    assert set(store.read("generations", KEY)["path"]) <= set(content["files"])
    assert f"tables/labels/partition={KEY}/none.parquet" in content["files"]
    assert "report.html" in content["report"]
    assert content["references"].keys() == {"r0", "r1", "r2"}


def test_a_report_of_a_checkpoint_without_labels_is_one_line(tmp_path):
    from fbmem_core.store.tables import Store

    store = Store(tmp_path)
    store.write("checkpoints", KEY, [blank("checkpoints", audit="drawn", fingerprint="0")])
    with pytest.raises(InputError, match=r"an audited checkpoint with labels, but got `drawn-"):
        gather(store, KEY)
