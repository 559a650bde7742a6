"""Label rules: one file each, which names its function and what the search must make exact for it."""

import pytest

from fbmem_core import rules
from fbmem_core.errors import InputError
from fbmem_core.labels import TAU, PairSimilarity, label_generation
from fbmem_core.retrieval.neighbors import nearest_references
from fbmem_core.retrieval.settings import SimilarityConfig
from tests.core.test_neighbors import generation_set, of, reference_set

NEW_RULE = '''"""The reference of the most similar background alone: BM if it is a copy."""

RANKED_BY = "background"


def label(case):
    return "BM" if (case.background or 0.0) >= case.tau else "NM"
'''


@pytest.fixture
def nearest_background(tmp_path, monkeypatch):
    """A rule in one file, beside those that ship."""
    (tmp_path / "nearest_background.py").write_text(NEW_RULE)
    monkeypatch.setattr(rules, "__path__", [*rules.__path__, str(tmp_path)])
    return "nearest_background"


def nearest(region):
    """What is nearest by one region to a generation with a copied foreground, with nothing listed below tau."""
    [(_, found)] = nearest_references(generation_set().select([4]), reference_set(), floor=TAU, top_k=0)
    return of(found, region)


def test_a_new_rule_is_one_file_that_audit_files_name_and_labels_follow(nearest_background):
    assert SimilarityConfig(rule=nearest_background).rule == [nearest_background]
    pairs = [PairSimilarity("near", 0.9, 0.9, 0.7), PairSimilarity("far", 0.1, 0.1, 0.8)]
    label = label_generation(pairs, foreground_fraction=0.3, rule=nearest_background)
    assert (label.label, label.background_reference_id) == ("BM", "far")


def test_the_search_makes_exact_what_the_file_of_a_rule_names(nearest_background):
    [background] = nearest("background")
    assert background.similarity < TAU and background.complete


def test_without_the_rule_nothing_is_listed_for_it():
    assert rules.ranking_regions() == ("average",)
    assert nearest("background") == []


def test_rules_are_listed_the_default_first():
    assert rules.rule_names() == ("per_region", "paper", "released")


def test_an_unknown_rule_is_one_line():
    with pytest.raises(InputError, match="one of per_region, paper, released, but got `strict` in the label rule"):
        label_generation([], foreground_fraction=0.3, rule="strict")
    with pytest.raises(ValueError, match="to be of per_region, paper, released, not `strict`"):
        SimilarityConfig(rule="strict")
