"""Labels by people beside fbmem's: numbers worked out by hand, and refusals."""

import json

import pytest
from sklearn.metrics import cohen_kappa_score

from fbmem_core.errors import InputError
from fbmem_core.evaluation.validation import Opinion, read_opinions, validate


def test_a_csv_and_a_json_of_labels_or_regions_are_read(tmp_path):
    (tmp_path / "people.csv").write_text("image,label,reference\na,vm,horse\nb,NM,\n")
    assert read_opinions(tmp_path / "people.csv") == [Opinion("a", "VM", "horse"), Opinion("b", "NM")]
    rows = [{"image": "a", "region": "foreground"}, {"image": "b", "region": "none"}]
    (tmp_path / "people.json").write_text(json.dumps(rows))
    assert read_opinions(tmp_path / "people.json") == [Opinion("a", "FM"), Opinion("b", "NM")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,VM\n", r"a column `image`, but got file, label in row 1 of .*people\.csv"),
        ("image,label\na,copy\n", r"one of VM, FM, BM, NM, but got `copy` in row 1"),
        ("image,region\na,sky\n", r"one of full, foreground, background, none, but got `sky`"),
        ("image,reference\na,horse\n", r"either a label or a region, but got neither"),
        ("image,label,region\na,VM,full\n", r"either a label or a region, but got both"),
        ("image,label\na,VM\nb,NM\na,NM\n", r"one label for each image, but got two for `a` in row 3"),
        ("image,label\n", r"labels of images, but got none"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_opinions(tmp_path / "people.csv")


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_opinions(tmp_path / "none.csv")
    (tmp_path / "people.json").write_text("{")
    with pytest.raises(InputError, match="CSV or JSON, but got JSONDecodeError"):
        read_opinions(tmp_path / "people.json")
    (tmp_path / "people.json").write_text('{"image": "a"}')
    with pytest.raises(InputError, match="a list of objects, but got a dict"):
        read_opinions(tmp_path / "people.json")


def test_confusion_kappa_and_references_are_counted():
    people = [
        Opinion("a", "VM", "horse"), Opinion("b", "FM", "owl"), Opinion("c", "NM"), Opinion("d", "BM"),
        Opinion("e", "NM"), Opinion("x", "NM"),
    ]  # fmt: skip
    own = [
        Opinion("a", "VM", "horse"), Opinion("b", "FM", "cat"), Opinion("c", "NM"), Opinion("d", None),
        Opinion("e", "BM", "sky"),
    ]  # fmt: skip
    result = validate(people, {opinion.image: opinion for opinion in own})
    assert result.confusion == {
        ("VM", "VM"): 1, ("FM", "FM"): 1, ("NM", "NM"): 1, ("BM", "undecided"): 1, ("NM", "BM"): 1,
    }  # fmt: skip
    expected = cohen_kappa_score(["VM", "FM", "NM", "BM", "NM"], ["VM", "FM", "NM", "undecided", "BM"])
    assert result.kappa == pytest.approx(expected)
    assert (result.num_images, result.num_agreed) == (5, 3)
    assert (result.num_references, result.num_same_reference) == (2, 1)
    assert result.unlabelled == ("x",)
    of_label = {cell.label: cell for cell in result.cells}
    assert (of_label["NM"].num_people, of_label["NM"].num_given, of_label["NM"].num_both) == (2, 1, 1)
    assert of_label["VM"].kappa == pytest.approx(1)
    assert of_label["BM"].kappa == pytest.approx(-0.25)


def test_images_of_another_set_are_refused():
    with pytest.raises(InputError, match=r"images that fbmem has labelled, but got `x` and the like.*`a`"):
        validate([Opinion("x", "VM")], {"a": Opinion("a", "VM")})


def test_one_label_alone_has_no_kappa():
    assert validate([Opinion("a", "NM")], {"a": Opinion("a", "NM")}).kappa is None
