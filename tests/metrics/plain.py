"""The metrics, written plainly: loops, and the libraries that the published code calls. M samples, N codes, F factors.

The tests compare our metrics with these, and `python -m tests.benchmarks.metrics` their costs. Most take rows that have
been drawn already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, mutual_info_score, roc_auc_score
from sklearn.preprocessing import label_binarize
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from raydis.metrics.dci import completeness, disentanglement
from raydis.metrics.dci_es import DEPTHS

Codes = NDArray[np.float64]
Factors = NDArray[np.int64]
Table = tuple[Codes, Factors]


def gap(scores: Sequence[Sequence[float]] | NDArray[np.float64]) -> float:
    """The mean over factors (F, N) of the best minus the second best."""
    return float(np.mean([sorted(row)[-1] - sorted(row)[-2] for row in scores]))


def logistic(codes: Codes, levels: NDArray[np.int64], **options: object) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(**options).fit(codes, levels)


def standardised(train: Codes, test: Codes) -> tuple[Codes, Codes]:
    mean, std = train.mean(axis=0), train.std(axis=0)
    return (train - mean) / std, (test - mean) / std


def information(codes: Codes, factors: Factors) -> NDArray[np.float64]:
    """The mutual information (N, F) of 20 bins of equal width."""
    bins = [np.digitize(column, np.histogram(column, 20)[1][:-1]) for column in codes.T]
    return np.array([[mutual_info_score(column, levels) for levels in factors.T] for column in bins])


def dci(train: Table, test: Table) -> tuple[float, float, float]:
    columns, accuracies = [], []
    for j in range(train[1].shape[1]):
        model = GradientBoostingClassifier(random_state=0).fit(train[0], train[1][:, j])
        columns.append(np.abs(model.feature_importances_))
        accuracies.append(model.score(test[0], test[1][:, j]))
    matrix = np.stack(columns, axis=1)
    return disentanglement(matrix), completeness(matrix), float(np.mean(accuracies))


def mig(codes: Codes, factors: Factors) -> float:
    entropies = [mutual_info_score(levels, levels) for levels in factors.T]
    return gap((information(codes, factors) / entropies).T)


def sap(train: Table, test: Table) -> float:
    scores = []
    for j in range(train[1].shape[1]):
        scores.append([])
        for i in range(train[0].shape[1]):
            model = LinearSVC(C=0.01, class_weight="balanced").fit(train[0][:, i][:, None], train[1][:, j])
            scores[-1].append(accuracy_score(test[1][:, j], model.predict(test[0][:, i][:, None])))
    return gap(scores)


def sap_continuous(codes: Codes, factors: Factors) -> float:
    scores = []
    for levels in factors.T:
        scores.append([])
        for code in codes.T:
            matrix = np.cov(code, levels, ddof=1)
            scores[-1].append(matrix[0, 1] ** 2 / (matrix[0, 0] * matrix[1, 1]))
    return gap(scores)


def modularity_explicitness(train: Table, test: Table) -> tuple[float, float]:
    squares = information(*train) ** 2
    modularity = [1 - (row.sum() - row.max()) / (row.max() * (len(row) - 1)) for row in squares]
    codes, test_codes = standardised(train[0], test[0])
    areas = []
    for j in range(train[1].shape[1]):
        model = logistic(codes, train[1][:, j])
        levels = label_binarize(test[1][:, j], classes=model.classes_)
        areas.append(roc_auc_score(levels, model.predict_proba(test_codes)))
    return float(np.mean(modularity)), float(np.mean(areas))


def factor_vae(
    codes: Codes, sizes: Sequence[int], *, num_variance: int, num_train: int, num_eval: int, batch_size: int = 64
) -> float:
    """The published procedure on a full grid, one vote at a time."""
    rng = np.random.default_rng(0)
    strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
    variance = codes[rng.integers(len(codes), size=num_variance)].var(axis=0, ddof=1)
    active = np.flatnonzero(np.sqrt(variance) >= 0.05)
    train, evaluation = np.zeros((2, len(sizes), codes.shape[1]), int)
    for votes, number in ((train, num_train), (evaluation, num_eval)):
        for _ in range(number):
            k = rng.integers(len(sizes))
            vectors = rng.integers(sizes, size=(batch_size, len(sizes)))
            vectors[:, k] = vectors[0, k]
            local = codes[vectors @ strides][:, active].var(axis=0, ddof=1)
            votes[k, active[(local / variance[active]).argmin()]] += 1
    return evaluation[train.argmax(axis=0), np.arange(codes.shape[1])].sum() / num_eval


def beta_vae(codes: Codes, sizes: Sequence[int], *, num_train: int, num_eval: int, batch_size: int = 64) -> float:
    """The published procedure on a full grid, one point at a time."""
    rng = np.random.default_rng(0)
    strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
    features, labels = np.zeros((num_train + num_eval, codes.shape[1])), np.zeros(num_train + num_eval, int)
    for point in range(len(labels)):
        labels[point] = k = rng.integers(len(sizes))
        first, second = rng.integers(sizes, size=(2, batch_size, len(sizes)))
        second[:, k] = first[:, k]
        features[point] = np.abs(codes[first @ strides] - codes[second @ strides]).mean(axis=0)
    model = logistic(features[:num_train], labels[:num_train])
    return float(model.score(features[num_train:], labels[num_train:]))


def irs(codes: Codes, factors: Factors) -> float:
    largest = np.abs(codes - codes.mean(axis=0)).max(axis=0)
    deviations = np.zeros((codes.shape[1], factors.shape[1]))
    for j in range(factors.shape[1]):
        levels = np.unique(factors[:, j])
        for level in levels:
            group = codes[factors[:, j] == level]
            deviations[:, j] += np.percentile(np.abs(group - group.mean(axis=0)), 99, axis=0) / len(levels)
    return float(np.average((1 - deviations / largest[:, None]).max(axis=1), weights=largest))


def infomec(codes: Codes, factors: Factors, *, seed: int) -> tuple[float, float, float]:
    """All codes must be active."""
    shares = np.array([mutual_info_classif(codes, y, n_neighbors=10, random_state=seed) for y in factors.T])  # (F, N)
    shares /= np.array([[entropy(np.bincount(y))] for y in factors.T])
    gains = []
    for y in factors.T:
        losses = []
        for served in (standardised(codes, codes)[0], np.zeros_like(codes)):
            model = logistic(served, y, C=np.inf, class_weight="balanced", max_iter=100)
            losses.append(log_loss(y, model.predict_proba(served)))
        gains.append(1 - losses[0] / losses[1])
    means = [(shares.max(axis) / shares.sum(axis)).mean() for axis in (0, 1)]
    chances = [1 / size for size in shares.shape]
    modularity, compactness = ((m - c) / (1 - c) for m, c in zip(means, chances, strict=True))
    return float(modularity), float(compactness), float(np.mean(gains))


def med(train: Table, test: Table) -> tuple[float, float, float]:
    importance = information(*train)
    importance /= importance.sum(axis=0)
    codes, test_codes = standardised(train[0], test[0])
    accuracies = [logistic(codes, train[1][:, j]).score(test_codes, test[1][:, j]) for j in range(train[1].shape[1])]
    return disentanglement(importance), completeness(importance), float(np.mean(accuracies))


def dci_es(train: Table, test: Table) -> float:
    """Explicitness, with a tree for each depth."""
    found = []
    for j in range(train[1].shape[1]):
        losses = []
        for depth in DEPTHS:
            model = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(train[0], train[1][:, j])
            losses.append(min([1 - model.score(test[0], test[1][:, j]), *losses[-1:]]))
        area = np.trapezoid(np.array(losses) - losses[-1], DEPTHS)
        found.append(1 - 2 * area / ((DEPTHS[-1] - DEPTHS[0]) * (1 - 1 / len(np.unique(train[1][:, j])))))
    return float(np.mean(found))


def tad_area(code: NDArray[np.float64], present: NDArray[np.bool_]) -> float:
    """The published area of one code and one attribute."""
    if code.max() - code.min() <= 0.2:
        return 0.5
    best = 0.5
    for sign in (1, -1):
        rates: tuple[list[float], list[float]] = ([], [])
        for threshold in np.linspace(code.min(), code.max(), 11):
            positive = code >= threshold if sign == 1 else code <= threshold
            rates[0].append((positive & ~present).sum() / (~present).sum())
            rates[1].append((positive & present).sum() / present.sum())
        false, true = sorted(rates[0]), sorted(rates[1])
        best = max(best, sum(true[t + 1] * (false[t + 1] - false[t]) for t in range(10)))
    return best


def tad(codes: Codes, attributes: Factors) -> float:
    areas = np.array([[tad_area(code, attribute == 1) for attribute in attributes.T] for code in codes.T])
    shares = np.array([[mutual_info_score(a, b) / entropy(np.bincount(a)) for b in attributes.T] for a in attributes.T])
    np.fill_diagonal(shares, 0.0)
    captured = (areas.max(axis=0) >= 0.75) & (shares.max(axis=1) <= 0.2)
    return gap(areas.T[captured]) * captured.sum() if captured.any() else 0.0


def self_mig(codes: Codes) -> float:
    bins = [np.searchsorted(np.quantile(code, np.arange(1, 20) / 20), code, side="right") for code in codes.T]
    found = []
    for i, own in enumerate(bins):
        whole = mutual_info_score(own, own)
        others = [mutual_info_score(own, other) for j, other in enumerate(bins) if j != i]
        found.append((whole - max(others)) / whole)
    return float(np.mean(found))


def sample_efficiency(few: Table, many: Table, test: Table, fit: Callable[..., object]) -> float:
    """With a classifier that `fit` makes."""
    means = []
    for codes, factors in (few, many):
        models = [fit().fit(codes, levels) for levels in factors.T]
        means.append(np.mean([model.score(test[0], test[1][:, j]) for j, model in enumerate(models)]))
    return float(min(means[0] / means[1], 1.0))
