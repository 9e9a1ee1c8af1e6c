"""ImageReward from a small checkpoint with the official names, against the same network written down from the paper."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import gelu, layer_norm, linear, softmax

from pixart.cli import main
from pixart.evaluation.metrics.image_reward import MEAN, STD, open_image_reward, tokenizer

VISION, TEXT, WORDS = 128, 64, 30524  # two heads and one; [DEC] and [ENC] stand behind BERT's words


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights by the names of ImageReward.pt, two layers in each network, 32-px pictures in patches of 8."""
    shapes: dict[str, tuple[int, ...]] = {"blip.visual_encoder.cls_token": (1, 1, VISION)}
    shapes["blip.visual_encoder.pos_embed"] = (1, 17, VISION)
    shapes["blip.text_encoder.embeddings.word_embeddings.weight"] = (WORDS, TEXT)
    shapes["blip.text_encoder.embeddings.position_embeddings.weight"] = (48, TEXT)

    def line(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    line("blip.visual_encoder.patch_embed.proj", VISION, 192)
    norm("blip.visual_encoder.norm", VISION)
    norm("blip.text_encoder.embeddings.LayerNorm", TEXT)
    line("blip.vision_proj", 256, VISION)
    for number in range(2):
        here = f"blip.visual_encoder.blocks.{number}"
        for part, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 2, 1), ("mlp.fc2", 1, 2)):
            line(f"{here}.{part}", rows * VISION, columns * VISION)
        norm(f"{here}.norm1", VISION), norm(f"{here}.norm2", VISION)
        here = f"blip.text_encoder.encoder.layer.{number}"
        for kind, source in (("attention", TEXT), ("crossattention", VISION)):
            line(f"{here}.{kind}.self.query", TEXT, TEXT)
            line(f"{here}.{kind}.self.key", TEXT, source), line(f"{here}.{kind}.self.value", TEXT, source)
            line(f"{here}.{kind}.output.dense", TEXT, TEXT), norm(f"{here}.{kind}.output.LayerNorm", TEXT)
        line(f"{here}.intermediate.dense", 2 * TEXT, TEXT), line(f"{here}.output.dense", TEXT, 2 * TEXT)
        norm(f"{here}.output.LayerNorm", TEXT)
    for number, (rows, columns) in {0: (32, TEXT), 2: (16, 32), 4: (8, 16), 6: (4, 8), 7: (1, 4)}.items():
        line(f"mlp.layers.{number}", rows, columns)
    generator = torch.Generator().manual_seed(4)
    made = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    made = {name: value + 1 if "orm" in name and name.endswith("weight") else value for name, value in made.items()}
    made["blip.visual_encoder.patch_embed.proj.weight"] = made["blip.visual_encoder.patch_embed.proj.weight"].reshape(
        VISION, 3, 8, 8
    )
    return made | {"blip.text_encoder.embeddings.position_ids": torch.arange(48)[None]}


def by_hand(state: dict[str, torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor) -> float:
    """One picture (3, 32, 32) and the tokens (T) of its prompt, without padding -> the score."""

    def lin(x, name):
        return linear(x, state[f"{name}.weight"].flatten(1), state[f"{name}.bias"])

    def norm(x, name, eps):
        return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q, k, v):
        q, k, v = (x.reshape(len(x), -1, 64).transpose(0, 1) for x in (q, k, v))
        return (softmax(q @ k.transpose(1, 2) / 8, dim=-1) @ v).transpose(0, 1).flatten(1)

    eye = "blip.visual_encoder"
    patches = pixels.reshape(3, 4, 8, 4, 8).permute(1, 3, 0, 2, 4).reshape(16, 192)
    x = (
        torch.cat([state[f"{eye}.cls_token"][0], lin(patches, f"{eye}.patch_embed.proj")])
        + state[f"{eye}.pos_embed"][0]
    )
    for number in range(2):
        here = f"{eye}.blocks.{number}"
        x = x + lin(attend(*lin(norm(x, f"{here}.norm1", 1e-6), f"{here}.attn.qkv").chunk(3, -1)), f"{here}.attn.proj")
        x = x + lin(gelu(lin(norm(x, f"{here}.norm2", 1e-6), f"{here}.mlp.fc1")), f"{here}.mlp.fc2")
    seen = norm(x, f"{eye}.norm", 1e-6)
    words = "blip.text_encoder.embeddings"
    x = state[f"{words}.word_embeddings.weight"][ids] + state[f"{words}.position_embeddings.weight"][: len(ids)]
    x = norm(x, f"{words}.LayerNorm", 1e-12)
    for number in range(2):
        here = f"blip.text_encoder.encoder.layer.{number}"
        for kind, source in (("attention", None), ("crossattention", seen)):
            own, at = f"{here}.{kind}", x if source is None else source
            q, k, v = (lin(a, f"{own}.self.{b}") for a, b in ((x, "query"), (at, "key"), (at, "value")))
            x = norm(x + lin(attend(q, k, v), f"{own}.output.dense"), f"{own}.output.LayerNorm", 1e-12)
        inner = lin(gelu(lin(x, f"{here}.intermediate.dense")), f"{here}.output.dense")
        x = norm(x + inner, f"{here}.output.LayerNorm", 1e-12)
    x = x[0]
    for number in (0, 2, 4, 6, 7):
        x = lin(x, f"mlp.layers.{number}")
    return (x.item() - MEAN) / STD


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "ImageReward.pt"
    torch.save(state, path)
    return path


def test_scores_are_those_of_the_network_in_the_checkpoint(state, checkpoint):
    from pixart.evaluation.metrics.image_reward import PIXEL_MEAN, PIXEL_STD

    rng = np.random.default_rng(2)
    pictures = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(2)]
    prompts = ["hello world", "a red apple on a table"]
    found = open_image_reward(checkpoint).scores(pictures, prompts)
    read = tokenizer().encode_batch(prompts)
    assert read[0].ids == [101, 7592, 2088, 102] + [0] * 31  # bert-base-uncased's numbers
    for score, picture, text in zip(found, pictures, read, strict=True):
        pixels = (torch.from_numpy(np.array(picture)).float() / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(
            PIXEL_STD
        )
        ids = torch.tensor(text.ids[: sum(text.attention_mask)])
        assert score == pytest.approx(by_hand(state, pixels.permute(2, 0, 1), ids), abs=1e-4)
    assert abs(found[0] - found[1]) > 1e-2


def test_the_command_prints_it_and_refuses_what_is_no_checkpoint(state, checkpoint, tmp_path):
    (tmp_path / "drawn").mkdir()
    Image.new("RGB", (40, 32), "red").save(tmp_path / "drawn" / "hello world_000000.png")
    words = [str(tmp_path / "drawn"), "--output", str(tmp_path / "out.json"), "--image-reward"]
    assert main(["metrics", *words, str(checkpoint)]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    expected = open_image_reward(checkpoint).scores([Image.new("RGB", (32, 32), "red")], ["hello world"])
    assert told["metrics"]["image_reward"] == pytest.approx(expected[0], abs=1e-4)
    assert len(told["protocol"]["image_reward"]) == 64
    assert main(["metrics", *words, str(tmp_path / "nowhere.pt")]) == 1
    (tmp_path / "out.json").unlink()
    assert main(["metrics", *words, str(checkpoint), "--hps", str(tmp_path / "hps.pt")]) == 1
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == told["metrics"]  # the rest is kept
    less = {name: value for name, value in state.items() if name != "blip.visual_encoder.blocks.1.norm2.bias"}
    torch.save(less, tmp_path / "less.pt")
    assert main(["metrics", *words, str(tmp_path / "less.pt")]) == 1
