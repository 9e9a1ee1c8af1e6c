"""Behaviours that a rewrite would lose unnoticed: each is a small fact that other code agrees on."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_convert import CONFIG
from test_official import official_state

from pixart.checkpoints.official import NULL_CAPTION, POSITIONS, OfficialFile, read_official
from pixart.diffusion import flow
from pixart.diffusion.objective import Objective, Timesteps
from pixart.diffusion.schedule import make_schedule
from pixart.encoders.tokenizer import Tokenizer


def test_texts_are_lower_cased_where_the_tokenizer_does_not(tiny_model, tmp_path):
    """As for T5: the stock pipeline lower-cases, its tokenizer keeps capitals apart."""
    from tokenizers import Tokenizer as Stored
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    stored = Stored(WordLevel({"<unk>": 0, "a": 1, "red": 2, "apple": 3, "Red": 4, "A": 5, "APPLE": 6}, "<unk>"))
    stored.pre_tokenizer = Whitespace()
    folder = shutil.copytree(tiny_model / "tokenizer", tmp_path / "tokenizer")
    stored.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder, tiny_model / "text_encoder")
    ids, mask, _ = tokenizer.padded(" A Red APPLE\n")
    assert ids[: sum(mask)] == [1, 2, 3]


@pytest.mark.parametrize(("size", "scale"), [(256, 0.5), (512, 1.0), (1024, 2.0), (2048, 4.0)])
def test_sigma_files_without_positions_count_them_by_size(tmp_path, size, scale):
    """PixArt-sigma `configs`: lewei_scale; a null caption of 300 tokens tells Σ from α."""
    state = official_state(CONFIG)
    state.pop(POSITIONS, None)
    state[NULL_CAPTION] = torch.zeros(300, state[NULL_CAPTION].shape[1])
    path = tmp_path / "sigma.safetensors"
    save_file(state, path)
    assert read_official(path, OfficialFile(num_heads=CONFIG.num_heads, image_size=size)).config.position_scale == scale


def test_a_flow_network_is_given_1000_sigma_in_training_and_in_sampling():
    """Training at the noise level of each sampling step gives the network the timestep that sampling gives it."""
    schedule = make_schedule({"prediction_type": "flow_prediction", "use_flow_sigmas": True}, 10)

    class Levels:
        """A generator that draws the noise levels of the sampling schedule."""

        def random(self, count):
            return np.array(schedule.sigmas[:count])

        def standard_normal(self, shape, dtype=float):
            return np.zeros(shape, dtype)

    x_0 = torch.ones(10, 2, 4, 4)
    trained = Objective("flow", timesteps=Timesteps(sampler="uniform")).add_noise(x_0, Levels()).timestep
    assert (trained - torch.tensor(schedule.timesteps)).abs().max() < 1  # sampling rounds down to whole timesteps
    sigma = torch.tensor([0.25])
    assert torch.allclose(flow.add_noise(x_0[:1], torch.zeros_like(x_0[:1]), sigma), 0.75 * x_0[:1])
