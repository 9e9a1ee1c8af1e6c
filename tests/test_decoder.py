"""The decoder trained on: from latents that the denoiser has drawn, to a model folder with another decoder only."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_data import write_tiny_data
from torch.utils.flop_counter import FlopCounterMode

import pixart
from pixart.checkpoints.diffusers import load_transformer
from pixart.checkpoints.model_folder import DEFAULT_MODEL, open_model_folder
from pixart.cli import main
from pixart.data import features
from pixart.diffusion.guidance import guide
from pixart.diffusion.noise import initial_noise
from pixart.encoders import autoencoder
from pixart.errors import PixArtError, UsageError
from pixart.training import recipe as recipes
from pixart.training.batches import Phase
from pixart.training.checkpoint_model import find_checkpoint
from pixart.training.command import run as train
from pixart.training.command import train_recipe
from pixart.training.decoder_stage import decoder_stage
from pixart.training.decoding import Decoder, DecoderRecipe, DecoderWeights, Drawer, Drawn, decoding_loss
from pixart.training.loop import LoopConfig
from pixart.training.optimizers.optimizer import OptimizerConfig
from pixart.training.planning.flops import forward_flops
from pixart.training.planning.plan import drawing_config, works
from pixart.training.planning.speed import measure
from pixart.training.rows import WHOLE, RowStreams, Share

STEPS, SIZE = 15, 32
WEIGHTS = "diffusion_pytorch_model.safetensors"


def quiet(line: str) -> None:
    pass


def recipe(home: Path, **changes) -> DecoderRecipe:
    asked = DecoderRecipe(
        run=home / "run",
        data=home / "data",
        cache=home / "cache",
        autoencoder=home / "model" / "vae",
        init=home / "model",
        phases=(Phase(steps=STEPS, size=SIZE, batch_size=8),),
        drawn=Drawn(share=0.5, highest_level=0.5, steps=2, guidance_scale=2.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, warmup_steps=3, decay_share=0.5),
        loop=LoopConfig(precision="fp32", ema_decay=0.9, ema_decays=(0.5,), log_every=5, evaluate_every=1000),
    )
    return dataclasses.replace(asked, **changes)


def write_model(tiny_model: Path, folder: Path) -> None:
    """The tiny model with the shipped autoencoder; what its denoiser draws is off in one direction."""
    shutil.copytree(tiny_model, folder)
    shutil.copytree(DEFAULT_MODEL / "vae", folder / "vae", dirs_exist_ok=True)
    file = folder / "transformer" / WEIGHTS
    state = load_file(file)
    state["proj_out.bias"] += 1.0
    save_file(state, file)


@pytest.fixture(scope="module")
def home(tiny_model, tmp_path_factory) -> Path:
    """With data, a model, and the finished run of its decoder. Do not change it; copy it."""
    home = tmp_path_factory.mktemp("decoder")
    write_tiny_data(home / "data")
    write_model(tiny_model, home / "model")
    (home / "model" / "decoder.onnx").write_bytes(b"of the decoder before")
    (home / "model" / "README.md").write_text("# The model before\n")
    assert train_recipe(recipe(home), quiet) == 0
    return home


@pytest.fixture(scope="module")
def stage(home):
    """The parts of the recipe before any training."""
    return decoder_stage(recipe(home), quiet)


def figures(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if "held_out_psnr_32" in line)


def test_the_decoder_changes_and_nothing_else_does(home, tmp_path):
    before, after = (load_file(folder / "vae" / WEIGHTS) for folder in (home / "model", home / "run"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert len(changed) == sum(name.startswith(("decoder.", "post_quant_conv.")) for name in before)
    written = load_file(home / "run" / "model" / "vae" / WEIGHTS)
    assert all(torch.equal(written[name], after[name].half()) for name in after)
    for part in ("transformer", "text_encoder", "tokenizer", "scheduler", "styles.json", "model_index.json"):
        place = home / "model" / part
        for file in place.rglob("*") if place.is_dir() else [place]:
            assert file.read_bytes() == (home / "run" / "model" / file.relative_to(home / "model")).read_bytes()
    assert not (home / "run" / "model" / "decoder.onnx").exists()  # it would draw with the decoder before
    ours, theirs = (
        features.latents(home / "data", "train", SIZE, vae / "vae", tmp_path / vae.name, quiet)
        for vae in (home / "run", home / "model")
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_drawn_latents_are_decoded_better_than_before_and_than_without_them(home, stage, tmp_path):
    before, after = stage.evaluate(stage.model, 0), figures(home / "run")
    assert before["held_out_psnr_32"] > before["held_out_drawn_psnr_32"] + 5
    plain = recipe(home, run=tmp_path / "plain", drawn=Drawn(share=0.0, steps=2, guidance_scale=2.0))
    assert train_recipe(plain, quiet) == 0
    for other in (before, figures(plain.run)):
        assert after["held_out_drawn_psnr_32"] > other["held_out_drawn_psnr_32"] + 1


def test_the_model_draws_another_picture_here_and_in_stock_diffusers(home):
    from diffusers import PixArtAlphaPipeline

    asked = {"seed": 3, "steps": 2, "guidance_scale": 2.0, "width": 64, "height": 64}
    old, new = (
        np.asarray(pixart.Pipeline.from_pretrained(folder, engine="torch", dtype="float32")("red circle", **asked).images[0]).astype(int)
        for folder in (home / "model", home / "run" / "model")
    )
    assert np.abs(new - old).mean() > 3
    stock = PixArtAlphaPipeline.from_pretrained(home / "run" / "model", low_cpu_mem_usage=False)
    stock.set_progress_bar_config(disable=True)
    theirs = stock(
        "red circle",
        num_inference_steps=2,
        guidance_scale=2.0,
        width=64,
        height=64,
        latents=torch.from_numpy(initial_noise(3, (8, 8, 8)))[None],
        clean_caption=False,
        use_resolution_binning=False,
    )
    assert np.abs(np.asarray(theirs.images[0]).astype(int) - new).max() <= 2


def some(rows: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])[:rows]
    return {
        "latent": torch.randn(rows, 8, 8, 8),
        "levels": torch.tensor([0.1, 0.3, 0.5])[:rows],
        "eps": torch.randn(rows, 8, 8, 8),
        "text": torch.randn(rows, 5, 32),
        "text_mask": mask,
    }


def test_a_latent_that_was_not_noised_comes_back_as_it_was(home):
    drawer = Drawer(load_transformer(home / "model" / "transformer"), torch.randn(2, 32), Drawn())
    asked = some()
    still = drawer.again(**asked | {"levels": torch.zeros(3)})
    assert torch.equal(still, asked["latent"])
    moved = (drawer.again(**asked) - asked["latent"]).square().mean(dim=(1, 2, 3))
    assert 0 < moved[0] < moved[1] < moved[2]  # the more noise, the farther


def test_drawing_again_is_eulers_method_with_guidance(home):
    network, null = load_transformer(home / "model" / "transformer"), torch.randn(2, 32)
    asked = some()
    drawn = Drawer(network, null, Drawn(steps=2, guidance_scale=3.0)).again(**asked)
    for row, level in enumerate(asked["levels"].tolist()):
        text = asked["text"][row : row + 1, : int(asked["text_mask"][row].sum())]
        x_t = (1 - level) * asked["latent"][row : row + 1] + level * asked["eps"][row : row + 1]
        for sigma, after in ((level, level / 2), (level / 2, 0.0)):
            at = torch.tensor([1000 * sigma])
            with torch.no_grad():
                velocity = guide(network(x_t, at, text, None), network(x_t, at, null[None], None), 3.0)
            x_t = x_t + (after - sigma) * velocity
        assert torch.allclose(drawn[row : row + 1], x_t, atol=1e-4)


def test_the_loss_is_that_of_the_autoencoder_where_nothing_is_drawn_or_noised(stage, home):
    """Its terms but the KL term, for the decoder before training: of the latents as they are."""
    batch = stage.batches(0)
    vae = features_vae(home)
    decoded = vae.decode(batch["latent"]).sample
    taken = [(decoded, batch["pixels"])], torch.zeros(len(decoded)), torch.zeros(len(decoded))
    same = {"squared_weight": 4.0, "gradient_weight": 0.5, "kl_weight": 0.0}
    wanted = autoencoder.loss(lambda pixels, rng: taken, batch | {"rng": None}, **same)
    drawer = stage.loss.keywords["drawer"]
    undrawn = Drawer(drawer.network, drawer.null, Drawn(share=0.0))
    given = batch | {"rng": RowStreams(0, 0, WHOLE.rows(8))}
    value = decoding_loss(Decoder(vae), given, drawer=undrawn, weights=DecoderWeights(4.0, 0.5))
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5) and given["losses"].shape == (8,)
    drawn = stage.loss(Decoder(vae), batch | {"rng": RowStreams(0, 0, WHOLE.rows(8))})
    assert drawn.item() != pytest.approx(value.item(), rel=1e-3)


def features_vae(home: Path):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(home / "model" / "vae", low_cpu_mem_usage=False).requires_grad_(False)


def test_a_batch_and_its_loss_do_not_depend_on_who_computes_it(stage):
    def loss_of(share: Share) -> tuple[list[str], float]:
        batch = stage.batches(7, share)
        batch["rng"] = RowStreams(0, 7, share.rows(8))
        with torch.no_grad():
            return batch["keys"], stage.loss(stage.model, batch).item()

    keys, whole = loss_of(WHOLE)
    halves = [loss_of(Share(part, 2)) for part in range(2)]
    assert keys == halves[0][0] + halves[1][0] and len(keys) == 8
    assert whole == pytest.approx((halves[0][1] + halves[1][1]) / 2, rel=1e-4)


def edited(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_cannot_draw_or_be_decoded_is_refused_in_one_sentence(home, tmp_path):
    def said(**changes) -> str:
        with pytest.raises(PixArtError) as caught:
            train_recipe(recipe(home, run=tmp_path / "run", **changes), quiet)
        assert not (tmp_path / "run").exists() and "\n" not in str(caught.value)
        return str(caught.value)

    assert "is not there. Train it first" in said(init=tmp_path / "none")
    (tmp_path / "begun").mkdir()
    shutil.copy(home / "run" / "config.json", tmp_path / "begun")
    assert "neither a model folder nor a run that has finished one" in said(init=tmp_path / "begun")
    eps = shutil.copytree(home / "model", tmp_path / "eps")
    edited(eps / "scheduler" / "scheduler_config.json", prediction_type="epsilon", use_flow_sigmas=False)
    assert "predicts eps" in said(init=eps)
    assert "The autoencoder in" in said(autoencoder=tmp_path / "none")
    scaled = shutil.copytree(home / "model" / "vae", tmp_path / "scaled")
    edited(scaled / "config.json", scaling_factor=0.18)
    assert "has scaling_factor 0.18" in said(autoencoder=scaled)
    for name, channels in (("other", 8), ("four", 4)):
        config = autoencoder.AutoencoderConfig((8, 8, 8, 8), latent_channels=channels, norm_num_groups=4)
        autoencoder.build(config).save_pretrained(tmp_path / name)
        assert f"latents of another autoencoder than {tmp_path / name}" in said(autoencoder=tmp_path / name)
    assert "share 2.0 must be from 0 to 1" in refused(lambda: Drawn(share=2.0))
    assert "steps 0 must be from 1 to 50" in refused(lambda: Drawn(steps=0))
    assert "squared -1.0" in refused(lambda: DecoderWeights(-1.0))
    assert "crop" in refused(lambda: recipe(home, phases=(Phase(1, 64, 1, crop=32),)))


def refused(make) -> str:
    with pytest.raises(UsageError) as caught:
        make()
    return str(caught.value)


def test_a_run_does_not_go_on_under_another_denoiser(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("finished.json"))
    model = shutil.copytree(home / "model", tmp_path / "model")
    asked = recipe(home, run=run, init=model)
    (run / "config.json").write_text(json.dumps(recipes.to_json(asked)))
    assert train_recipe(asked, quiet) == 0  # a copy of the model is the model, and a finish can be done again
    assert (run / "model" / "README.md").read_text().count("## The decoder") == 1
    (run / "finished.json").unlink()
    state = load_file(model / "transformer" / WEIGHTS)
    state["proj_out.bias"] += 0.1
    save_file(state, model / "transformer" / WEIGHTS)
    with pytest.raises(PixArtError, match="data of this run has changed"):
        train_recipe(asked, quiet)


def test_its_run_says_what_to_draw_with(home, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"run of a decoder; what it made is the model folder .*run/model"):
        find_checkpoint(home / "run")
    assert main(["generate", "a fox", "--model", str(home / "run")]) == 2
    assert f"give the model that it has made: {home / 'run' / 'model'}" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="no finished model is in it"):
        open_model_folder(tmp_path)


def test_the_card_goes_on_from_that_of_the_model(home):
    card = (home / "run" / "model" / "README.md").read_text()
    assert card.startswith("# The model before\n\n## The decoder\n") and "| run | 120 |" in card
    assert f"- held out drawn psnr 32: {figures(home / 'run')['held_out_drawn_psnr_32']:.4g}" in card


def test_another_average_can_be_chosen(home, tmp_path, capsys):
    assert main(["ema", str(home / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.9", "0.5"] and "held_out_drawn_psnr_32" in lines[0]
    chosen = tmp_path / "chosen"
    assert main(["ema", str(home / "run"), "--decay", "0.5", "--dest", str(chosen)]) == 0
    assert open_model_folder(chosen).name == "chosen"
    own, other = (load_file(folder / "vae" / WEIGHTS) for folder in (home / "run" / "model", chosen))
    assert not torch.equal(own["decoder.conv_out.weight"], other["decoder.conv_out.weight"])
    assert torch.equal(own["encoder.conv_in.weight"], other["encoder.conv_in.weight"])


def test_the_shipped_recipe_follows_the_chain(capsys):
    shipped = recipes.load("emoji/decoder")
    assert shipped.init == recipes.load("emoji/stage3_again").run
    assert shipped.autoencoder == recipes.load("emoji/stage3_again").autoencoder
    assert train(["emoji/decoder", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["kind"] == "decoder" and "emoji/decoder: decoder, into runs/emoji-decoder" in said.err
    assert "Decoder; 50% of the latents drawn in 2 steps with guidance 3; " in said.err
    assert main(["plan", "emoji/decoder", "--hardware", "a100"]) == 0
    steps = sum(phase.steps for phase in shipped.phases)
    assert f"emoji/decoder: Decoder with 1.6 M parameters, {steps:,} steps" in capsys.readouterr().out


def test_until_the_drawing_model_is_there_the_plan_counts_with_the_shipped_one(home, tmp_path):
    asked = recipe(home, autoencoder=DEFAULT_MODEL / "vae", init=DEFAULT_MODEL)
    assert works(dataclasses.replace(asked, init=tmp_path / "later")) == works(asked) != works(recipe(home))


def test_a_plan_times_the_drawing_beside_the_decoder(home):
    """One pass of the share that is drawn, in the two steps that are taken; the others of its passes are as long."""
    asked, counted = recipe(home), []
    for share in (0.0, 0.5):
        drawn = dataclasses.replace(asked, drawn=Drawn(share=share, steps=2))
        with FlopCounterMode(display=False) as counter:
            (found,) = measure(drawn, steps=1)
        counted.append(counter.get_total_flops())
        assert found.seconds_per_step * found.speed == pytest.approx(8 * works(drawn)[0].flops_per_image)
        assert 0 <= found.waited < 1
    one_pass = forward_flops(drawing_config(asked), SIZE // 8, 32)
    assert counted[1] - counted[0] == pytest.approx(2 * 4 * one_pass, rel=0.1)  # torch leaves fused attention out


def test_the_plan_counts_the_decoder_and_who_draws_for_it(home, stage):
    """As torch does, but for the gradient of the decoder's own inputs. Plans take texts to have 32 tokens."""
    (drawing,) = works(recipe(home, drawn=Drawn(share=0.5, steps=2)))
    (without,) = works(recipe(home, drawn=Drawn(share=0.0)))
    batch = stage.batches(0)
    with FlopCounterMode(display=False) as counter:
        stage.model(batch["latent"]).sum().backward()
    assert 8 * without.flops_per_image == pytest.approx(counter.get_total_flops(), rel=0.02)
    drawer = Drawer(stage.loss.keywords["drawer"].network, torch.randn(32, 32), Drawn(steps=2))
    text, text_mask = torch.randn(8, 32, 32), torch.ones(8, 32, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        drawer.again(batch["latent"], torch.full((8,), 0.3), batch["latent"], text, text_mask)
    drawn = 8 * (drawing.flops_per_image - without.flops_per_image)
    assert 2 * drawn == pytest.approx(counter.get_total_flops(), rel=0.1)  # torch leaves fused attention out
    weights, trained = (sum(p.numel() for p in part.parameters()) for part in (drawer.network, stage.model))
    assert drawing.state_bytes == 20 * trained + 4 * weights
