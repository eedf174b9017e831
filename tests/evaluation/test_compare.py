"""`vqtok evaluate --compare`: what became better or worse, and whether that is beyond chance and the tolerance."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vqtok.errors import UsageError
from vqtok.evaluation.compare import bootstrap, compare, parse_tolerance


def results(psnr, flip, model="m", frechet=None):
    """Return results of one model with these figures of each item."""
    metrics = [
        {"name": "psnr", "heading": "PSNR dB", "decimals": 2, "higher_is_better": True, "of_sets": False},
        {"name": "flip", "heading": "FLIP", "decimals": 4, "higher_is_better": False, "of_sets": False},
        {"name": "fid", "heading": "rFID", "decimals": 2, "higher_is_better": False, "of_sets": True},
    ]
    name = f"{model}@2"
    items = [
        {"key": f"{i}.png", "sha256": str(i), "figures": {name: {"bpp": 0.5, "psnr": a, "flip": b}}}
        for i, (a, b) in enumerate(zip(psnr, flip, strict=True))
    ]
    candidate = {"id": name, "source": model, "kind": "model", "num_codebooks": 2, "figures": {"fid": frechet}}
    found = {"metrics": metrics, "models": {model: {}}, "candidates": [candidate], "items": items}
    return {"modalities": {"image": found}}


def verdicts(*args):
    return {change.metric: change.verdict for change in compare(*args)}


NOISE = np.random.default_rng(1).normal(0, 1, 40)
PSNR, FLIP = (30 + NOISE).tolist(), (0.1 + 0.01 * NOISE).tolist()


def test_verdicts():
    better = results([value + 1 for value in PSNR], [value - 0.02 for value in FLIP])
    assert verdicts(results(PSNR, FLIP), better) == {"bpp": "same", "psnr": "better", "flip": "better"}
    worse = results([value - 1 for value in PSNR], [value + 0.02 for value in FLIP])
    assert verdicts(results(PSNR, FLIP), worse) == {"bpp": "same", "psnr": "regression", "flip": "regression"}
    assert verdicts(results(PSNR, FLIP), worse, "psnr=2") | {} == {"bpp": "same", "psnr": "worse", "flip": "regression"}
    assert set(verdicts(results(PSNR, FLIP), worse, "0.5").values()) == {"same", "worse"}


def test_chance_is_no_change():
    chance = np.random.default_rng(2).normal(0, 0.5, 40)
    noisy = results((np.array(PSNR) + chance - chance.mean() - 0.02).tolist(), FLIP)
    assert verdicts(results(PSNR, FLIP), noisy, "0")["psnr"] == "same"


def test_only_common_items_with_finite_figures_count():
    old, new = results(PSNR, FLIP), results(["inf", None, *PSNR[2:]], FLIP)
    new["modalities"]["image"]["items"][5]["sha256"] = "changed"
    change = next(change for change in compare(old, new) if change.metric == "psnr")
    assert change.num_items == len(PSNR) - 3
    assert change.old == change.new


def test_distances_of_sets_are_compared_without_an_interval():
    assert verdicts(results(PSNR, FLIP, frechet=2.0), results(PSNR, FLIP, frechet=3.0))["fid"] == "regression"
    assert verdicts(results(PSNR, FLIP, frechet=2.0), results(PSNR, FLIP, frechet=2.01))["fid"] == "worse"
    fewer = results(PSNR[1:], FLIP[1:], frechet=3.0)
    assert "fid" not in verdicts(results(PSNR, FLIP, frechet=2.0), fewer)  # They are of other items.


def test_models_of_other_names_are_paired_in_order():
    change = compare(results(PSNR, FLIP, "old"), results(PSNR, FLIP, "new"))[0]
    assert (change.candidate, change.other) == ("old@2", "new@2")


def test_nothing_in_common():
    other = results(PSNR, FLIP)
    for item in other["modalities"]["image"]["items"]:
        item["sha256"] += "x"
    with pytest.raises(UsageError, match="no item, model and metric in common"):
        compare(results(PSNR, FLIP), other)


def test_the_bootstrap_covers_the_mean():
    """The interval of 95 % holds the true mean in about 95 % of samples."""
    rng = np.random.default_rng(0)
    held = [low <= 3 <= high for low, high in (bootstrap(rng.normal(3, 1, 60)) for _ in range(60))]
    assert sum(held) >= 50
    assert bootstrap(np.ones(5)) == (1, 1)


def test_tolerances():
    assert parse_tolerance(None) == (0.01, {})
    assert parse_tolerance("0.05,psnr=0.1") == (0.05, {"psnr": 0.1})
    for text in ("x", "-1", "psnr=", "nan"):
        with pytest.raises(UsageError, match="give a fraction"):
            parse_tolerance(text)


def test_the_command(evaluate, run, photos, make_model, image_model, tmp_path):
    evaluate(photos, "-m", image_model, "--against", "jpeg", "--codebooks", "4", output="old")
    evaluate(photos, "-m", make_model("image", seed=5), "--against", "none", "--codebooks", "4", output="new")
    result = run("evaluate", "--compare", tmp_path / "old", tmp_path / "new", "--json")
    found = {line["metric"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert set(found) == {"bpp", "psnr"}
    assert found["psnr"]["num_items"] == 4
    assert result.exit_code == any(line["verdict"] == "regression" for line in found.values())
    both = [
        run("evaluate", "--compare", *(tmp_path / name for name in order), "--tolerance", "0").exit_code
        for order in (("old", "new"), ("new", "old"))
    ]
    assert 1 in both  # Two models never differ in no figure.
    same = run("evaluate", "--compare", tmp_path / "old", tmp_path / "old/results.json")
    assert same.exit_code == 0
    assert "no regressions" in same.stderr
    assert run("evaluate", "--compare", tmp_path / "old", tmp_path / "missing").exit_code == 1
    assert run("evaluate", photos, "--tolerance", "0.1").exit_code == 2
