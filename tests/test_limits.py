"""How far each format may be from what was recorded."""

from itertools import pairwise
from pathlib import Path

from tunewright.artifacts import RunDirectory
from tunewright.recipe import VerifyKeys
from tunewright.verify.limits import gguf_limits, served_kl_limit


def test_fewer_bits_may_be_further_away() -> None:
    limits = [gguf_limits(VerifyKeys(), name) for name in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")]
    assert limits[1] == {"top1_agreement": 0.98, "clear_top1_agreement": 0.99, "mean_kl": 0.01}
    for nearer, further in pairwise(limits):
        assert nearer["mean_kl"] <= further["mean_kl"]
        assert nearer["top1_agreement"] >= further["top1_agreement"]
        assert nearer["clear_top1_agreement"] >= further["clear_top1_agreement"]
    assert limits[2]["mean_kl"] < limits[3]["mean_kl"]


def test_what_the_recipe_sets_holds_for_every_format() -> None:
    config = VerifyKeys(gguf_kl_limit=0.5, gguf_top1_limit=0.7, gguf_clear_top1_limit=0.6)
    wanted = {"top1_agreement": 0.7, "clear_top1_agreement": 0.6, "mean_kl": 0.5}
    assert gguf_limits(config, "q4_k_m") == gguf_limits(config, "q8_0") == wanted


def test_an_endpoint_may_be_as_far_away_as_the_roughest_exported_format(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    run = RunDirectory(tmp_path)
    assert served_kl_limit(VerifyKeys(), run) == 0.01
    (tmp_path / "export" / "model-q4_k_m.gguf").touch()
    (tmp_path / "export" / "model-f16.gguf").touch()
    assert served_kl_limit(VerifyKeys(), run) == 0.15
