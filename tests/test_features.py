"""What training reads: cached pixels, latents and text states, the batches made of them, and the flow's noise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import write_tiny_data

from pixart.data import features
from pixart.data.imagefolder import read_split
from pixart.diffusion import flow
from pixart.encoders import autoencoder
from pixart.encoders.text import TextEncoder
from pixart.errors import PixArtError, UsageError
from pixart.training.batches import (
    ClassCondition,
    LatentBatches,
    Phase,
    PixelBatches,
    Sampling,
    TextCondition,
    phase_at,
    total_steps,
    weights_of,
)
from pixart.training.rows import Share


@pytest.fixture
def data(tmp_path) -> Path:
    return write_tiny_data(tmp_path / "data")


@pytest.fixture(scope="module")
def encoder(tiny_model) -> TextEncoder:
    return TextEncoder(tiny_model / "text_encoder", tiny_model / "tokenizer", "BertModel")


@pytest.fixture(scope="module")
def text(tiny_model, tmp_path_factory) -> features.TextStates:
    folder = tmp_path_factory.mktemp("text")
    write_tiny_data(folder / "data")
    parts = tiny_model / "text_encoder", tiny_model / "tokenizer"
    return features.text_states(folder / "data", "train", *parts, folder / "cache", lambda line: None)


def read_pixels(data: Path, size: int = 64) -> tuple[torch.Tensor, list[str]]:
    """The pixels of the training set, and what was reported: nothing when they came from the cache."""
    said: list[str] = []
    return features.pixels(data, "train", size, data.parent / "cache", said.append), said


def test_pixels_are_the_pictures_in_the_order_of_the_metadata(data):
    pixels, said = read_pixels(data)
    assert pixels.shape == (16, 3, 64, 64) and pixels.dtype == torch.uint8 and len(said) == 1
    for record, ours in zip(read_split(data / "train"), pixels, strict=True):
        with Image.open(record.path) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), ours.permute(1, 2, 0).numpy())
    assert read_pixels(data, 32)[0].shape == (16, 3, 32, 32)
    unit = features.to_unit(pixels)
    assert unit.min() >= -1 and unit.max() == 1


def test_a_fresh_cache_is_used_and_a_stale_one_made_again(data):
    first, _ = read_pixels(data)
    again, said = read_pixels(data)
    assert said == [] and torch.equal(first, again)

    metadata = data / "train" / "metadata.jsonl"
    metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[::-1]))
    turned, said = read_pixels(data)
    assert said and torch.equal(turned, first.flip(0))

    record = read_split(data / "train")[3]
    Image.new("RGB", (64, 64), "purple").save(record.path)  # the same words, another picture
    changed, said = read_pixels(data)
    assert said and changed[3].float().std(dim=(1, 2)).max() == 0

    shard = data.parent / "cache" / "train-pixels-64.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    repaired, said = read_pixels(data)
    assert said and torch.equal(repaired, changed)


def test_missing_and_damaged_files_are_named(data):
    with pytest.raises(PixArtError, match="nowhere"):
        read_pixels(data.parent / "nowhere")
    picture = read_split(data / "train")[0].path
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(PixArtError, match=picture.name):
        read_pixels(data)
    (data.parent / "empty").mkdir()
    with pytest.raises(PixArtError, match="empty holds no safetensors"):
        features.latents(data, "train", 64, data.parent / "empty", data.parent / "cache", print)


def test_a_cache_that_cannot_be_written_is_named(data):
    (data.parent / "cache").write_text("a file where the folder should be")
    with pytest.raises(PixArtError, match=r"train-pixels-64\.safetensors"):
        read_pixels(data)


def test_latents_are_the_moments_of_the_autoencoder(data, tiny_model):
    from diffusers import AutoencoderKL

    said: list[str] = []
    cache = data.parent / "cache"
    mean, std = features.latents(data, "test_cells", 64, tiny_model / "vae", cache, said.append)
    assert mean.shape == std.shape == (3, 8, 8, 8) and mean.dtype == std.dtype == torch.float16 and said
    vae = AutoencoderKL.from_pretrained(tiny_model / "vae", low_cpu_mem_usage=False)
    pixels = features.to_unit(features.pixels(data, "test_cells", 64, cache, said.append))
    expected, spread = autoencoder.moments(vae, pixels)
    assert (mean.float() - expected).norm() < 0.03 * expected.norm()  # bf16 has 8 bits of precision
    assert (std.float() - spread).norm() < 0.03 * spread.norm()

    said.clear()
    features.latents(data, "test_cells", 64, tiny_model / "vae", cache, said.append)
    assert said == []
    with torch.no_grad():
        vae.quant_conv.bias += 1
    vae.save_pretrained(data.parent / "other")
    moved, _ = features.latents(data, "test_cells", 64, data.parent / "other", cache, said.append)
    assert said and (moved.float() - mean.float() - 1).abs().max() < 0.1


def test_text_states_are_those_that_drawing_uses(text, data, encoder):
    records = read_split(data / "train")
    captions = [caption for record in records for caption in record.captions]
    assert text.starts.shape == (len(captions) + 1,) and text.first_caption.tolist() == list(range(0, 49, 3))
    assert text.states.dtype == torch.float16 and len(text.states) == text.starts[-1]
    for index in (0, 1, 2, 25, 47):
        drawn = encoder.encode(captions[index])
        ours = text.states[text.starts[index] : text.starts[index + 1]].float()
        assert len(ours) == drawn.mask.sum()
        theirs = drawn.states[0, : len(ours)]
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
    null = encoder.encode("")
    assert len(text.null) == null.mask.sum() == 2
    assert (text.null.float() - null.states[0, :2]).norm() < 0.03 * null.states.norm()


def test_another_tokenizer_makes_the_text_again(data, tiny_model):
    said: list[str] = []
    tokenizer = shutil.copytree(tiny_model / "tokenizer", data.parent / "tokenizer")

    def read() -> features.TextStates:
        parts = tiny_model / "text_encoder", tokenizer
        return features.text_states(data, "test_cells", *parts, data.parent / "cache", said.append)

    first, again = read(), read()
    assert len(said) == 1 and torch.equal(first.states, again.states)
    parsed = json.loads((tokenizer / "tokenizer.json").read_text())
    parsed["pre_tokenizer"] = {"type": "WhitespaceSplit"}  # "circle," becomes one word, which is spelt as it is
    parsed["model"]["vocab"]["circle,"] = parsed["model"]["vocab"].pop("z")
    (tokenizer / "tokenizer.json").write_text(json.dumps(parsed))
    other = read()
    assert len(said) == 2 and len(other.states) != len(first.states)


def test_the_text_of_a_batch_has_its_padding_and_mask(text):
    chosen = np.array([0, 5, 15])
    batch = TextCondition(text, dropout=0.0, short_share=1.0)(chosen, np.random.default_rng(0))
    assert batch["text"].shape[:2] == batch["text_mask"].shape and batch["text_mask"].dtype == torch.bool
    assert batch["text"].shape[1] % 16 == 0
    for row, picture in enumerate(chosen):
        caption = text.first_caption[picture]  # the short one
        expected = text.states[text.starts[caption] : text.starts[caption + 1]]
        length = len(expected)
        assert torch.equal(batch["text"][row, :length], expected.float())
        assert not batch["text"][row, length:].any()
        assert batch["text_mask"][row].tolist() == [True] * length + [False] * (batch["text"].shape[1] - length)


def test_all_captions_of_a_picture_are_drawn_and_the_short_one_as_often_as_said(text):
    chosen = np.zeros(600, dtype=int)
    lengths = (text.starts[1:4] - text.starts[:3]).tolist()
    assert len(set(lengths)) == 3  # so that the length tells which caption it is

    def shares(short_share: float) -> list[float]:
        batch = TextCondition(text, 0.0, short_share)(chosen, np.random.default_rng(1))
        counts = batch["text_mask"].sum(dim=1)
        return [(counts == length).float().mean().item() for length in lengths]

    assert shares(0.0) == pytest.approx([1 / 3] * 3, abs=0.07)
    assert shares(0.7) == pytest.approx([0.8, 0.1, 0.1], abs=0.07)


def test_dropped_captions_are_the_null_text_with_its_own_mask(text):
    condition = TextCondition(text, dropout=1.0)
    batch = condition(np.arange(16), np.random.default_rng(0))
    assert batch["text"].shape == (16, 16, 32)
    assert torch.equal(batch["text"][:, :2], text.null.float().expand(16, 2, 32))
    assert batch["text_mask"].sum(dim=1).tolist() == [2] * 16
    some = TextCondition(text, dropout=0.1)(np.zeros(1000, dtype=int), np.random.default_rng(0))
    assert (some["text_mask"].sum(dim=1) == 2).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_dropped_classes_are_the_null_class_of_every_kind():
    classes = torch.tensor([[0, 1], [2, 0]])
    condition = ClassCondition(classes, (3, 2), dropout=0.25)
    drawn = condition(np.array([0, 1] * 500), np.random.default_rng(0))["classes"]
    dropped = (drawn == torch.tensor([3, 2])).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(drawn[~dropped], classes.repeat(500, 1)[~dropped])
    assert classes.tolist() == [[0, 1], [2, 0]]  # the table itself is not written to


def latent_batches(weights: np.ndarray, phases: tuple[Phase, ...]) -> LatentBatches:
    """Pictures whose latents are their own number, without spread, at 64 and 32 px."""
    moments = {}
    for size in (64, 32):
        mean = torch.arange(len(weights)).view(-1, 1, 1, 1).expand(-1, 2, size // 8, size // 8).half()
        moments[size] = (mean, torch.zeros_like(mean))
    return LatentBatches(moments, weights, lambda chosen, rng: {"chosen": chosen}, phases, seed=3)


def test_batches_are_a_pure_function_of_the_step():
    phases = (Phase(steps=2, size=32, batch_size=4), Phase(steps=3, size=64, batch_size=6))
    batches = latent_batches(np.ones(50) / 50, phases)
    assert total_steps(phases) == 5
    assert [phase_at(phases, step).size for step in range(6)] == [32, 32, 64, 64, 64, 64]
    third, first = batches(2), batches(0)
    assert torch.equal(batches(2)["latent"], third["latent"])
    assert first["latent"].shape == (4, 2, 4, 4) and first["count"] == 4
    assert third["latent"].shape == (6, 2, 8, 8) and third["count"] == 6
    assert third["latent"][:, 0, 0, 0].tolist() == third["chosen"].tolist()
    assert not np.array_equal(batches(3)["chosen"], third["chosen"])


def test_latents_are_samples_of_the_posterior():
    mean, std = torch.full((64, 1, 8, 8), 2.0).half(), torch.full((64, 1, 8, 8), 0.5).half()
    phases = (Phase(steps=1, size=64, batch_size=64),)
    batch = LatentBatches({64: (mean, std)}, np.ones(64), lambda chosen, rng: {}, phases, seed=0)(0)
    assert batch["latent"].mean().item() == pytest.approx(2.0, abs=0.05)
    assert batch["latent"].std().item() == pytest.approx(0.5, abs=0.05)


def test_pictures_are_drawn_by_weight(data):
    records = read_split(data / "train")
    weights = weights_of(records, Sampling(style_weights={"Noto": 3.0}, skin_tone_weight=0.5))
    by_hand = np.array([(3.0 if r.style == "Noto" else 1.0) * (0.5 if r.skin_tone else 1.0) for r in records])
    assert np.allclose(weights, by_hand / by_hand.sum()) and sum(r.skin_tone is not None for r in records) == 1
    batches = latent_batches(weights, (Phase(steps=250, size=32, batch_size=16),))
    chosen = np.concatenate([batches(step)["chosen"] for step in range(250)])
    assert np.bincount(chosen, minlength=16) / 4000 == pytest.approx(weights, abs=0.02)
    with pytest.raises(UsageError, match=r"names \['3D'\]; the data has the styles \['Noto', 'flat'\]"):
        weights_of(records, Sampling(style_weights={"3D": 3.0}))


def test_crops_lie_inside_the_picture():
    picture = torch.arange(64 * 64).view(1, 1, 64, 64).remainder(251).to(torch.uint8).expand(40, 3, 64, 64)
    whole = features.to_unit(picture)[0]
    batch = PixelBatches({64: picture}, (Phase(steps=1, size=64, batch_size=40, crop=16),), seed=0)(0)
    assert batch["pixels"].shape == (40, 3, 16, 16) and batch["count"] == 40
    places = whole[0].unfold(0, 16, 1).unfold(1, 16, 1)  # (49, 49, 16, 16)
    found = {tuple(torch.nonzero((places == crop[0]).all(-1).all(-1))[0].tolist()) for crop in batch["pixels"]}
    assert len(found) > 20
    uncut = PixelBatches({64: picture}, (Phase(steps=1, size=64, batch_size=2),), seed=0)(0)
    assert torch.equal(uncut["pixels"], whole.expand(2, 3, 64, 64))


def test_flow_goes_straight_from_picture_to_noise():
    x_0, eps = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow.add_noise(x_0, eps, torch.zeros(3)), x_0)
    assert torch.equal(flow.add_noise(x_0, eps, torch.ones(3)), eps)
    sigma = torch.tensor([0.2, 0.5, 0.9])
    x_t = flow.add_noise(x_0, eps, sigma)
    assert torch.allclose(x_t - sigma.view(3, 1, 1, 1) * (eps - x_0), x_0, atol=1e-6)
    assert flow.losses(eps - x_0, x_0, eps).tolist() == [0, 0, 0]
    assert flow.losses(eps - x_0 + 2, x_0, eps).tolist() == pytest.approx([4.0] * 3)


def tiny_autoencoder() -> torch.nn.Module:
    torch.manual_seed(1)
    config = autoencoder.AutoencoderConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    return autoencoder.build(config).eval()


@torch.no_grad()
def test_folding_gives_latents_unit_scale_and_leaves_pictures_alone(data):
    vae, pixels = tiny_autoencoder(), features.to_unit(read_pixels(data)[0])
    mean, std = autoencoder.moments(vae, pixels)
    pictures = vae.decode(mean).sample
    channel_mean, channel_std = mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3))
    assert (channel_std - 1).abs().max() > 0.1  # not already so
    autoencoder.fold_statistics(vae, channel_mean, channel_std)
    folded, folded_std = autoencoder.moments(vae, pixels)
    assert folded.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(folded.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-3)
    assert torch.allclose(folded_std, std / channel_std.view(1, 8, 1, 1), rtol=1e-3)
    assert torch.allclose(vae.decode(folded).sample, pictures, atol=1e-4)
    assert vae.config.scaling_factor == 1.0 and not vae.config.shift_factor


@torch.no_grad()
def test_psnr_and_the_training_view_agree_with_the_autoencoder(data):
    vae, pixels = tiny_autoencoder(), features.to_unit(read_pixels(data)[0])
    [(drawn, true)], mean, logvar = autoencoder.Reconstruction(vae)(pixels, np.random.default_rng(0))
    expected, spread = autoencoder.moments(vae, pixels)
    assert torch.allclose(mean, expected, atol=1e-5) and torch.allclose(torch.exp(0.5 * logvar), spread, atol=1e-5)
    assert drawn.shape == pixels.shape and true is pixels
    by_hand = [
        -10 * torch.log10(((vae.decode(m[None]).sample.clamp(-1, 1) - p) / 2).square().mean())
        for m, p in zip(expected, pixels, strict=True)
    ]
    assert autoencoder.psnr(vae, pixels, batch_size=5) == pytest.approx(torch.stack(by_hand).mean().item(), abs=1e-3)


def test_psnr_of_turned_latents_is_that_of_turned_pictures():
    vae = tiny_autoencoder()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, _ = autoencoder.moments(vae, pixels)
    turned = [part.rot90(1, (2, 3)) for part in (mean, pixels)]
    half = [torch.nn.functional.interpolate(p, scale_factor=0.5, mode="bilinear", antialias=True) for p in turned]
    assert autoencoder.psnr(vae, pixels, turned=True) != pytest.approx(autoencoder.psnr(vae, pixels), abs=0.1)
    with torch.no_grad():
        near = ((vae.decode(half[0]).sample.clamp(-1, 1) - half[1]) / 2).square().mean(dim=(1, 2, 3))
    by_hand = (-10 * torch.log10(near)).mean().item()
    assert autoencoder.psnr(vae, pixels, turned=True) == pytest.approx(by_hand, abs=1e-3)


def test_the_loss_of_the_autoencoder_counts_pixels_edges_and_spread():
    class Given(torch.nn.Module):
        """Answers with the picture that it was given, changed, and a posterior of its own."""

        def __init__(self, change, mean, logvar):
            super().__init__()
            self.answer = change, torch.full((1, 2, 1, 1), mean), torch.full((1, 2, 1, 1), logvar)

        def forward(self, pixels, rng):
            change, mean, logvar = self.answer
            return [(pixels + change, pixels)], mean, logvar

    batch = {"pixels": torch.zeros(1, 3, 8, 8), "rng": None}
    weights = {"squared_weight": 5.0, "gradient_weight": 1.0, "kl_weight": 0.1}
    loss = lambda *given: autoencoder.loss(Given(*given), batch, **weights).item()  # noqa: E731
    assert loss(torch.tensor(0.0), 0.0, 0.0) == 0.0
    assert loss(torch.tensor(0.2), 0.0, 0.0) == pytest.approx(0.2 + 5 * 0.04)  # an even change has no edges
    half = torch.zeros(1, 3, 8, 8)
    half[..., 4:] = 0.2  # one edge between columns, a seventh of the horizontal differences
    assert loss(half, 0.0, 0.0) == pytest.approx(0.1 + 5 * 0.02 + 0.2 / 7)
    assert loss(torch.tensor(0.0), 2.0, 0.0) == pytest.approx(0.1 * 0.5 * 4)


def test_latents_and_pictures_are_turned_and_shrunk_alike():
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    latent = torch.cat([ramp * slope for slope in torch.linspace(0.5, 1.5, 60)])
    pixels = torch.nn.functional.interpolate(latent, scale_factor=8, mode="bilinear").expand(-1, 3, -1, -1)
    whole, smaller, half = autoencoder.transformed(latent, pixels, 1.0, np.random.default_rng(0))
    assert [part[0].shape[-1] for part in (whole, smaller, half)] == [16, 12, 8]
    assert sum(len(part[0]) for part in (whole, smaller, half)) == 60
    for z, true in (whole, smaller, half):
        assert true.shape[-1] == 8 * z.shape[-1]
        assert torch.allclose(torch.nn.functional.avg_pool2d(true[:, :1], 8), z, atol=0.05)
        across = (z[:, 0, 3] - z[:, 0, 3].flip(-1)).sign()[:, 0]  # which way the ramp goes: left, right, or neither
        assert set(across.tolist()) == {-1.0, 0.0, 1.0}
    untouched = autoencoder.transformed(latent, pixels, 0.0, np.random.default_rng(0))
    assert len(untouched) == 1 and all(map(torch.equal, untouched[0], (latent, pixels)))
    some = autoencoder.transformed(latent, pixels, 0.5, np.random.default_rng(0))
    assert 10 <= sum(len(z) for z, _ in some[1:]) <= 30  # two thirds of half of them are shrunk


def test_the_loss_of_turned_pictures_weighs_each_picture_alike():
    class Pairs(torch.nn.Module):
        def forward(self, pixels, rng):
            drawn = [(torch.full((1, 3, 8, 8), 0.4), torch.zeros(1, 3, 8, 8)), (torch.zeros(3, 3, 4, 4),) * 2]
            return drawn, torch.zeros(4, 2, 1, 1), torch.zeros(4, 2, 1, 1)

    weights = {"squared_weight": 5.0, "gradient_weight": 1.0, "kl_weight": 0.1}
    assert autoencoder.loss(Pairs(), {"pixels": None, "rng": None}, **weights).item() == pytest.approx(
        (0.4 + 5 * 0.16) / 4
    )


def test_equivariance_takes_from_a_latent_what_does_not_turn_with_the_picture():
    def learned(share: float) -> float:
        """How much worse a turned latent decodes than a straight one, after some steps on two pictures."""
        vae, rng = tiny_autoencoder(), np.random.default_rng(0)
        pixels = torch.from_numpy(rng.uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)).repeat_interleave(8, 2)
        pixels = pixels.repeat_interleave(8, 3)
        model = autoencoder.Reconstruction(vae.train(), share)
        optimizer = torch.optim.Adam(vae.parameters(), 5e-3)
        weights = {"squared_weight": 5.0, "gradient_weight": 0.0, "kl_weight": 0.0}
        for _ in range(120):
            optimizer.zero_grad()
            autoencoder.loss(model, {"pixels": pixels, "rng": rng}, **weights).backward()
            optimizer.step()
        with torch.no_grad():
            mean, _ = autoencoder.moments(vae, pixels)
            turned = [part.rot90(1, (2, 3)) for part in (mean, pixels)]
            errors = [(vae.decode(z).sample - true).square().mean() for z, true in (turned, (mean, pixels))]
        return (errors[0] - errors[1]).item()

    assert learned(0.5) < 0.5 * learned(0.0)


def test_batches_name_their_pictures():
    pictures, keys = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 16, 16), list("abcde")
    batch = PixelBatches({16: pictures}, (Phase(steps=1, size=16, batch_size=5),), 0, keys)(0)
    assert batch["keys"] == [keys[round((p[0, 0, 0].item() + 1) * 127.5)] for p in batch["pixels"]]
    moments = {64: (torch.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 8, 8), torch.zeros(5, 2, 8, 8))}
    latents = LatentBatches(
        moments, np.ones(5) / 5, lambda chosen, rng: {}, (Phase(steps=1, size=64, batch_size=5),), 0, keys
    )
    assert (batch := latents(0))["keys"] == [keys[int(latent[0, 0, 0])] for latent in batch["latent"]]
    two = [latents(0, Share(part, 5))["keys"] for part in range(5)]
    assert [name for part in two for name in part] == batch["keys"]
