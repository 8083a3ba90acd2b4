"""The recipe: field-standard keys, aliases of other tools, and errors that name the nearest key."""

import json
from pathlib import Path

import pytest

from tunewright.aliases import ALIASES
from tunewright.errors import RecipeError
from tunewright.recipe import (
    DataKeys,
    Recipe,
    TrainKeys,
    build_recipe,
    default_name,
    parse_override,
    read_recipe,
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    path = write(tmp_path, "data: rows.jsonl\nlearnig_rate: 1e-4\n")
    with pytest.raises(RecipeError, match=r"unknown recipe key 'learnig_rate'; expected 'learning_rate'"):
        read_recipe(path, {})


def test_aliases_of_other_tools_are_understood() -> None:
    recipe = build_recipe(
        {"datasets": "rows.jsonl", "base_model": "x/y", "lora_rank": 8, "cutoff_len": 512, "micro_batch_size": 2}, "r"
    )
    assert (recipe.model, recipe.lora_r, recipe.max_length, recipe.per_device_train_batch_size) == ("x/y", 8, 512, 2)


def test_every_alias_points_to_a_key() -> None:
    assert set(ALIASES.values()) <= set(Recipe.model_fields)
    assert not set(ALIASES) & set(Recipe.model_fields)


def test_a_key_and_its_alias_together_are_refused() -> None:
    with pytest.raises(RecipeError, match="both set 'lora_r'"):
        build_recipe({"data": "rows.jsonl", "lora_r": 8, "lora_rank": 16}, "r")


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, "data: [a.jsonl, sub/b.jsonl]\neval_data: /c.jsonl\n"), {})
    assert recipe.data == [str(tmp_path / "a.jsonl"), str(tmp_path / "sub/b.jsonl")]
    assert recipe.eval_data == ["/c.jsonl"]


def test_overrides_take_the_place_of_keys(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, "data: a.jsonl\nlora_r: 8\n"), dict([parse_override("lora_r=32")]))
    assert recipe.lora_r == 32


def test_an_override_in_scientific_notation_is_a_number() -> None:
    assert build_recipe(dict([parse_override("learning_rate=2e-4"), ("data", "a")]), "-o").learning_rate == 2e-4


@pytest.mark.parametrize("text", ["lora_r", "=3"])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="expected key=value"):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("data: a\nlora_r: 0\n", "lora_r"),
        ("data: a\non_bad_row: ignore\n", "on_bad_row"),
        ("lora_r: 8\n", "no file with training rows is named"),
        ("- a\n", "found list"),
        ("data: [a\n", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        read_recipe(write(tmp_path, text), {})


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: the recipe does not exist"):
        read_recipe(tmp_path / "none.yaml", {})


def test_a_stage_sees_its_own_keys_only() -> None:
    recipe = build_recipe({"data": "a.jsonl", "lora_r": 8}, "r")
    assert recipe.section(TrainKeys).lora_r == 8
    assert "lora_r" not in recipe.section(DataKeys).model_dump()


def test_a_recipe_survives_its_own_yaml(tmp_path: Path) -> None:
    recipe = build_recipe({"data": "/a.jsonl", "system_prompt": "Ä\n\n- b", "accept": ["x"]}, "r")
    assert read_recipe(write(tmp_path, recipe.as_yaml()), {}) == recipe


def test_the_default_name_is_that_of_the_recipes_directory_or_of_the_file() -> None:
    assert default_name(Path("examples/triage/recipe.yaml")) == "triage"
    assert default_name(Path("data/rows.jsonl.gz")) == "rows"


def test_data_is_beside_the_recipe_and_a_hub_data_set_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rows").mkdir()
    names = ["rows.jsonl", "own/rows", "owner/name", "owner/name@v1:data/a.jsonl", "folder/rows.jsonl"]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"data": names}))
    root = tmp_path.resolve()
    expected = [str(root / "rows.jsonl"), str(root / "own" / "rows"), *names[2:4], str(root / "folder" / "rows.jsonl")]
    assert read_recipe(tmp_path / "recipe.yaml", {}).data == expected
