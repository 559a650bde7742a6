"""Study of foregrounds: traits of a copied object that predict that its memory survives a mitigation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from fbmem_core.evaluation.studies import INTERVAL, Finding, span

_MIN_CASES = 20  # for a probe of traits
_FOLDS = 5


def foreground_probe(
    traits: np.ndarray,
    names: Sequence[str],
    survived: Sequence[bool],
    families: Sequence[Hashable],
    *,
    subject: str,
) -> list[Finding]:
    """Traits of a copied object that predict that its memory survives a mitigation.

    Args:
        traits: [n, traits] of n copied foregrounds.
        names: Of the traits.
        survived: Whether each is still copied.
        families: What the cases are independent by; no family is in a training and a test fold at once.
        subject: The mitigation.

    Returns:
        The cross-validated area under the ROC curve of a logistic regression, then a coefficient for each trait, per
        standard deviation of the trait.
    """
    truth, name = np.asarray(survived, dtype=bool), "foreground_probe"
    groups = np.array([str(family) for family in families])
    num_groups = len(set(groups.tolist()))
    kinds = [len(set(groups[truth == kind].tolist())) for kind in (True, False)]
    if len(truth) < _MIN_CASES or min(kinds) < 2:
        sentence = f"Under {subject} {int(truth.sum())} of {len(truth)} copied foregrounds survive: too few to compare."
        return [Finding(name, subject, "area under the ROC curve", None, None, None, num_groups, sentence)]
    area = _cross_validated_area(traits, truth, groups)
    low, high = _area_interval(area[0], truth, groups)
    findings = [Finding(
        name, subject, "area under the ROC curve", area[1], low, high, num_groups,
        f"Under {subject} {int(truth.sum())} of {len(truth)} copied foregrounds survive; their traits tell which with "
        f"an area of {area[1]:.2f} {span(low, high)} (cross-validated; 0.5 is chance).",
    )]  # fmt: skip
    coefficients = _coefficients(traits, truth, groups)
    for trait, value, ends in zip(names, coefficients[0], coefficients[1].T, strict=True):
        way = "survives more often" if ends[0] > 0 else "survives less often" if ends[1] < 0 else "cannot be told apart"
        sentence = f"With more `{trait}` a copied foreground {way} under {subject} ({value:+.2f} {span(*ends)})."
        findings.append(
            Finding(name, subject, trait, float(value), float(ends[0]), float(ends[1]), num_groups, sentence)
        )
    return findings


def _cross_validated_area(traits: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, float]:
    """Predictions of the folds that each case was held out in, and their area under the ROC curve."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    folds = StratifiedGroupKFold(min(_FOLDS, len(set(groups.tolist()))))
    predicted = cross_val_predict(_model(), traits, truth, groups=groups, cv=folds, method="predict_proba")[:, 1]
    return predicted, float(roc_auc_score(truth, predicted))


def _area_interval(predicted: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> tuple[float | None, float | None]:
    from fbmem_core.evaluation.detection import detection

    result = detection(predicted.tolist(), truth.tolist(), groups.tolist())
    return result.auc_low, result.auc_high


def _coefficients(traits: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[traits] and their interval [2, traits] over drawn families."""
    members = [np.flatnonzero(groups == group) for group in sorted(set(groups.tolist()))]
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        rows = np.concatenate([members[index] for index in generator.integers(len(members), size=len(members))])
        if len(set(truth[rows].tolist())) == 2:
            drawn.append(_model().fit(traits[rows], truth[rows])[-1].coef_[0])
    return _model().fit(traits, truth)[-1].coef_[0], np.percentile(drawn, INTERVAL, axis=0)


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression())
