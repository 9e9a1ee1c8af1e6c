"""The general styles: whom they are for, and that no word of style or user runs into another."""

import pytest

from pixart.checkpoints.model_folder import open_model_folder
from pixart.checkpoints.styles import GENERAL_STYLES, style_notice
from pixart.cli import main
from pixart.errors import UsageError
from pixart.pipeline.prompts import apply_style
from pixart.pipeline.request import make_request

# The names in the demo's list, in its order; "No style" is the tenth.
DEMO = "Cinematic, Photographic, Anime, Manga, Digital Art, Pixel art, Fantasy art, Neonpunk, 3D Model"


def test_they_are_the_demos_by_name():
    assert ", ".join(GENERAL_STYLES) == DEMO


@pytest.mark.parametrize("name", GENERAL_STYLES)
def test_negatives_are_set_apart_and_the_words_stay_the_users(name):
    prompt, negative = apply_style("a {fox}", "blurry", GENERAL_STYLES[name])
    assert "a {fox}" in prompt and "{prompt}" not in prompt
    assert negative.endswith(", blurry")


def test_a_folder_without_styles_has_them(folder):
    (folder / "styles.json").unlink()
    opened = open_model_folder(folder)
    assert opened.styles == GENERAL_STYLES
    request = make_request(opened, "a fox", style="cinematic", negative_prompt="blurry")
    assert request.style == "Cinematic"
    assert request.resolved_negative_prompt == GENERAL_STYLES["Cinematic"].negative_prompt + ", blurry"
    assert style_notice("Cinematic", opened.styles) is None


def test_a_folder_with_styles_lists_its_own_and_takes_the_general_ones_by_name(tiny_model):
    opened = open_model_folder(tiny_model)
    assert "Cinematic" not in opened.styles
    assert make_request(opened, "a fox", style="neonpunk").style == "Neonpunk"
    assert make_request(opened, "a fox", style="No style").style is None
    with pytest.raises(UsageError, match='no style "oil"; choose one of: 3D, Flat'):
        make_request(opened, "a fox", style="oil")


def test_the_command_says_that_the_model_has_other_styles(tiny_model, tmp_path, capsys):
    arguments = ["generate", "a fox", "--model", str(tiny_model), "--steps", "1", "--output", str(tmp_path / "")]
    assert main([*arguments, "--style", "Manga"]) == 0
    assert '"Manga" is a general style; this model was trained on its own: 3D, Flat.' in capsys.readouterr().err
