"""The VQ-GAN: published names, the quantizer's gradients, the care of codes, the losses."""

import threading
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from adamatch_ray.config import load_config
from adamatch_ray.losses.vqgan import (
    adaptive_weight,
    discriminator_losses,
    feature_distance,
    generator_losses,
    training_step,
)
from adamatch_ray.model_config import DiscriminatorConfig, VQGANConfig, VQLossConfig
from adamatch_ray.models.discriminator import PatchDiscriminator
from adamatch_ray.models.quantizer import CodeKeeper, Quantized, VectorQuantizer
from adamatch_ray.models.vqgan import VQGAN
from adamatch_ray.models.vqgan_io import fingerprint, load_checkpoint, load_pretrained, save_pretrained
from adamatch_ray.models.vqgan_layers import Downsample

TINY = VQGANConfig(
    image_size=16,
    in_channels=1,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(8,),
    z_channels=8,
    codes=12,
    code_dim=4,
)
WEAK = VQLossConfig(adversarial_start=0)

Shapes = dict[str, tuple[int, ...]]


def conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def residual(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", inputs, outputs, 3)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs, 3)
    return shapes | (conv(f"{name}.nin_shortcut", inputs, outputs, 1) if inputs != outputs else {})


def attention(name: str, channels: int) -> Shapes:
    shapes = norm(f"{name}.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.{part}", channels, channels, 1)
    return shapes


def middle(name: str, channels: int) -> Shapes:
    blocks = residual(f"{name}.block_1", channels, channels) | residual(f"{name}.block_2", channels, channels)
    return blocks | attention(f"{name}.attn_1", channels)


def paper_shapes() -> Shapes:
    """Every tensor of the published f16 model, walked in the order data takes."""
    widths, width = (128, 128, 256, 256, 512), 128
    shapes = conv("encoder.conv_in", 3, 128, 3)
    for level, wider in enumerate(widths):
        for block in range(2):
            shapes |= residual(f"encoder.down.{level}.block.{block}", width, wider)
            width = wider
            if level == 4:
                shapes |= attention(f"encoder.down.4.attn.{block}", 512)
        if level < 4:
            shapes |= conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    shapes |= middle("encoder.mid", 512) | norm("encoder.norm_out", 512) | conv("encoder.conv_out", 512, 256, 3)
    shapes |= conv("quant_conv", 256, 256, 1) | {"quantize.embedding.weight": (1024, 256)}
    shapes |= conv("post_quant_conv", 256, 256, 1) | conv("decoder.conv_in", 256, 512, 3) | middle("decoder.mid", 512)
    for level in (4, 3, 2, 1, 0):
        for block in range(3):
            shapes |= residual(f"decoder.up.{level}.block.{block}", width, widths[level])
            width = widths[level]
            if level == 4:
                shapes |= attention(f"decoder.up.4.attn.{block}", 512)
        if level > 0:
            shapes |= conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    return shapes | norm("decoder.norm_out", 128) | conv("decoder.conv_out", 128, 3, 3)


def seeded(config: VQGANConfig, seed: int = 0) -> VQGAN:
    torch.manual_seed(seed)
    model = VQGAN(config)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def picture(batch: int = 2, config: VQGANConfig = TINY) -> Tensor:
    side = config.image_size
    return torch.rand(batch, config.in_channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_paper_size_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = VQGAN(VQGANConfig()).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == paper_shapes()


def test_paper_size_counts_72_million_parameters() -> None:
    """Encoder, decoder, 1024 codes and both 1 x 1 convolutions; neither discriminator nor perceptual network."""
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_141_699
    assert (model.config.grid, model.config.tokens) == (16, 256)


@pytest.mark.parametrize("kind", ["plain.pt", "lightning.ckpt", "tensors.safetensors", "half.safetensors"])
def test_published_files_load(kind: str, tmp_path: Path) -> None:
    model = seeded(TINY).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["loss.discriminator.main.0.weight"] = torch.zeros(3)
    path = tmp_path / kind
    if kind == "lightning.ckpt":
        torch.save({"state_dict": state, "epoch": 3, "global_step": 9, "optimizer_states": []}, path)
    elif kind == "plain.pt":
        torch.save(state, path)
    else:
        save_file({name: value.half() if "half" in kind else value for name, value in state.items()}, path)
    loaded = load_checkpoint(path, TINY).eval()
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    if "half" not in kind:
        assert fingerprint(loaded) == fingerprint(model)
        assert torch.equal(loaded(picture()).reconstruction, model(picture()).reconstruction)
    loaded(picture()).reconstruction.sum().backward()  # still trainable
    assert loaded.encoder.conv_in.weight.grad is not None


def test_checkpoint_with_other_objects_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": seeded(TINY).state_dict(), "callbacks": Fraction(1, 2)}, path)
    with pytest.raises(ValueError, match="convert it once") as error:
        load_checkpoint(path, TINY)
    line = str(error.value).split("with the line: ")[1].removeprefix('python -c "').removesuffix('"')
    exec(line)
    assert fingerprint(load_checkpoint(tmp_path / "last.safetensors", TINY)) == fingerprint(seeded(TINY))


def test_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(seeded(TINY).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"quantize.embedding.weight has shape \(12, 4\).*\(13, 4\)"):
        load_checkpoint(tmp_path / "a.pt", VQGANConfig(**{**TINY.__dict__, "codes": 13}))
    with pytest.raises(ValueError, match=r"0 names missing .* 30 unknown .*attn_resolutions"):
        load_checkpoint(tmp_path / "a.pt", VQGANConfig(**{**TINY.__dict__, "attn_resolutions": ()}))


def test_model_folder_round_trip_and_fingerprint(tmp_path: Path) -> None:
    config = VQGANConfig(**{**TINY.__dict__, "ema_decay": 0.9})
    model = seeded(config)
    save_pretrained(model.to(memory_format=torch.channels_last), tmp_path / "vqgan")
    loaded = load_pretrained(tmp_path / "vqgan")
    assert loaded.config == config and fingerprint(loaded) == fingerprint(model)
    assert not loaded.quantize.embedding.weight.requires_grad
    with torch.no_grad():
        loaded.decoder.conv_out.weight[0].add_(1e-6)
    assert fingerprint(loaded) != fingerprint(model)
    with pytest.raises(ValueError, match=r"has no config.json"):
        load_pretrained(tmp_path)


def test_downsampling_pads_right_and_bottom_only() -> None:
    down, x = Downsample(3), torch.randn(2, 3, 8, 8)
    wider = torch.zeros(2, 3, 9, 9)
    wider[:, :, :8, :8] = x
    assert torch.allclose(down(x), F.conv2d(wider, down.conv.weight, down.conv.bias, stride=2))
    assert not torch.allclose(down(x), F.conv2d(x, down.conv.weight, down.conv.bias, stride=2, padding=1))


def test_without_autograd_the_same_image_comes_out() -> None:
    """The in-place shortcuts of inference change nothing, not even their input."""
    model, image = seeded(TINY).eval(), picture()
    before, expected = image.clone(), model(image).reconstruction
    with torch.inference_mode():
        assert torch.allclose(model(image).reconstruction, expected, atol=1e-6)
    assert torch.equal(image, before)


def test_tokens_decode_to_what_forward_reconstructs() -> None:
    model, image = seeded(TINY).eval(), picture()
    output = model(image)
    assert torch.equal(model.encode_tokens(image), output.quantized.indices_BT)
    assert torch.allclose(model.decode_tokens(output.quantized.indices_BT), output.reconstruction, atol=1e-5)


@pytest.mark.parametrize("change", [{"image_size": 15}, {"ch": 20}, {"ema_decay": 1.0}])
def test_impossible_sizes_name_the_field(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        VQGANConfig(**{**TINY.__dict__, **change})


def test_phantom_size_is_small() -> None:
    with torch.device("meta"):
        model = VQGAN(load_config("phantom").vqgan)
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000


def grad_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def quantizer(**options: bool) -> VectorQuantizer:
    torch.manual_seed(3)
    made = VectorQuantizer(7, 4, 0.25, **options)
    torch.nn.init.normal_(made.embedding.weight)
    return made


LATENT = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(4))


def test_nearest_code_is_the_nearest_also_under_autocast() -> None:
    codes = quantizer().embedding.weight.detach()
    flat = LATENT.permute(0, 2, 3, 1).reshape(-1, 4)
    expected = (flat[:, None] - codes).square().sum(-1).argmin(1).view(2, 15)
    assert torch.equal(quantizer()(LATENT).indices_BT, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer()(LATENT).indices_BT, expected)
    assert torch.allclose(quantizer()(LATENT).z[1, :, 1, 2], codes[expected[1, 7]])


def test_gradient_passes_straight_through() -> None:
    latent = LATENT.clone().requires_grad_()
    pull = torch.randn(LATENT.shape)
    (quantizer()(latent).z * pull).sum().backward()
    assert latent.grad is not None and torch.equal(latent.grad, pull)


def test_legacy_beta_puts_beta_on_the_codebook_term() -> None:
    """As published: other gradients, the value of the loss with the roles of beta swapped."""
    gradients = {}
    for legacy in (False, True):
        layer, latent = quantizer(legacy_beta=legacy), LATENT.clone().requires_grad_()
        found = layer(latent)
        found.loss.backward()
        gradients[legacy] = (grad_of(latent), grad_of(layer.embedding.weight))
        error = F.mse_loss(layer.look_up(found.indices_BT, 3, 5), LATENT)
        assert found.loss.item() == pytest.approx(1.25 * error.item())
    assert torch.allclose(gradients[True][0], 4 * gradients[False][0])
    assert torch.allclose(4 * gradients[True][1], gradients[False][1])


def one_code(latents: Tensor, index: int) -> Quantized:
    """A batch whose latents [B, dim] all chose the same code."""
    grid = latents[:, :, None, None]
    return Quantized(grid, torch.full((len(latents), 1), index), grid, grid.new_zeros(()))


def test_dead_codes_become_latents_of_the_batch() -> None:
    layer, latents = quantizer(), torch.randn(5, 4)
    keeper = CodeKeeper(layer, decay=0.5)
    alive = layer.embedding.weight[2].clone()
    renewed = [keeper.update(one_code(latents, 2)) for _ in range(5)]
    assert renewed[0] == 0 and max(renewed) == 6
    assert torch.equal(layer.embedding.weight[2], alive)
    for code in (0, 1, 3, 4, 5, 6):
        assert (layer.embedding.weight[code] == latents).all(1).any()
    assert "share" not in "".join(layer.state_dict())


def test_moving_average_draws_a_code_to_the_mean_of_its_latents() -> None:
    layer, latents = quantizer(learned=False), torch.randn(6, 4) + 3
    keeper = CodeKeeper(layer, decay=0.5, dead_below=0.0, move_codes=True)
    still = layer.embedding.weight[1].clone()
    for _ in range(30):
        keeper.update(one_code(latents, 4))
    assert torch.allclose(layer.embedding.weight[4], latents.mean(0), atol=1e-3)
    assert torch.allclose(layer.embedding.weight[1], still, atol=1e-5)
    with pytest.raises(ValueError, match="ema_decay"):
        CodeKeeper(quantizer(), move_codes=True)


def test_resumed_keeper_goes_on_as_an_uninterrupted_one() -> None:
    straight, stopped = quantizer(), quantizer()
    keepers = [CodeKeeper(straight, decay=0.5), CodeKeeper(stopped, decay=0.5)]
    batches = [one_code(torch.randn(5, 4), step % 2) for step in range(8)]
    for batch in batches[:4]:
        for keeper in keepers:
            keeper.update(batch)
    resumed = CodeKeeper(stopped, decay=0.5, seed=9)
    resumed.load_state_dict({name: value.clone() for name, value in keepers[1].state_dict().items()})
    for batch in batches[4:]:
        keepers[0].update(batch)
        resumed.update(batch)
    assert torch.equal(straight.embedding.weight, stopped.embedding.weight)


def test_two_workers_keep_the_same_codes() -> None:
    """Each sees its own batch; the sums are shared, and only the primary worker offers new codes."""
    barrier, shared = threading.Barrier(2), {}
    layers, batches = [quantizer(), quantizer()], [one_code(torch.randn(5, 4), 0), one_code(torch.randn(5, 4), 1)]

    def work(rank: int) -> None:
        def add_up(tensor: Tensor) -> None:
            shared[rank] = tensor.clone()
            barrier.wait(timeout=10)
            tensor.copy_(shared[0] + shared[1])
            barrier.wait(timeout=10)

        keeper = CodeKeeper(layers[rank], decay=0.5, reduce=add_up, primary=rank == 0)
        for _ in range(5):
            keeper.update(batches[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(layers[0].embedding.weight, layers[1].embedding.weight)
    assert (layers[0].embedding.weight[5] == batches[0].latent.flatten(1)).all(1).any()


def judge(channels: int = 1) -> PatchDiscriminator:
    torch.manual_seed(5)
    return PatchDiscriminator(DiscriminatorConfig(ch=8, layers=1), channels)


def test_discriminator_has_the_published_layout() -> None:
    discriminator = PatchDiscriminator(DiscriminatorConfig())
    shapes = {name: tuple(value.shape) for name, value in discriminator.state_dict().items()}
    assert shapes["main.0.weight"] == (64, 3, 4, 4) and shapes["main.8.weight"] == (512, 256, 4, 4)
    assert shapes["main.3.running_mean"] == (128,) and shapes["main.11.weight"] == (1, 512, 4, 4)
    assert "main.2.bias" not in shapes
    (logits,) = discriminator(torch.zeros(1, 3, 256, 256))
    assert logits.shape == (1, 1, 30, 30)


def test_real_images_are_judged_apart_from_generated_ones() -> None:
    real, fake = picture(), picture() * 0.1
    together = judge()(real, fake)
    assert torch.allclose(together[0], judge()(real)[0]) and torch.allclose(together[1], judge()(fake)[0])


def test_hinge_loss_known_values() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    losses = discriminator_losses(real, fake, lambda *images: images)
    assert losses.total.item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert (losses.real_logit.item(), losses.fake_logit.item()) == (1.25, -1.0)


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    fidelity, adversarial = (layer * torch.tensor([3.0, 4.0])).sum(), layer.sum() * 0.5
    expected = 5.0 / (0.5 * 2**0.5 + 1e-4)
    found = adaptive_weight(fidelity, adversarial, layer)
    assert found.item() == pytest.approx(expected) and not found.requires_grad
    assert adaptive_weight(fidelity, layer.sum() * 0.0, layer).item() == pytest.approx(1e4)


def test_step_before_and_after_the_discriminator_joins() -> None:
    model, discriminator, image = seeded(TINY), judge(), picture()
    last = model.decoder.conv_out.weight
    config = VQLossConfig(adversarial_start=10)
    early = training_step(model, image, step=9, config=config, last_layer=last, discriminator=discriminator)
    assert early.discriminator is None and early.generator.adversarial_weight.item() == 0.0
    late = training_step(model, image, step=10, config=config, last_layer=last, discriminator=discriminator)
    assert late.discriminator is not None and late.generator.adversarial_weight.item() > 0.0
    with pytest.raises(ValueError, match="give a discriminator"):
        training_step(model, image, step=10, config=config, last_layer=last)


def test_each_side_learns_from_its_own_loss_only() -> None:
    model, discriminator = seeded(TINY), judge()
    result = training_step(
        model, picture(), step=0, config=WEAK, last_layer=model.decoder.conv_out.weight, discriminator=discriminator
    )
    result.generator.total.backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    learned = {name: grad_of(parameter).clone() for name, parameter in model.named_parameters()}
    assert result.discriminator is not None
    result.discriminator.total.backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert all(torch.equal(grad_of(parameter), learned[name]) for name, parameter in model.named_parameters())


def test_total_adds_up_with_perceptual_and_clinical_features() -> None:
    model, image = seeded(TINY), picture()
    config = VQLossConfig(perceptual_weight=2.0, clinical_weight=100.0, codebook_weight=0.5)
    output = model(image)
    losses = generator_losses(
        image,
        output,
        step=0,
        config=config,
        last_layer=model.decoder.conv_out.weight,
        perceptual=partial(feature_distance, lambda x: [F.avg_pool2d(x, 2), x.mean((2, 3))]),
        clinical=partial(feature_distance, lambda x: x.mean((1, 2, 3))),
    )
    made = output.reconstruction
    wide = (F.avg_pool2d(made - image, 2) ** 2).mean()
    perceived = (wide + ((made - image).mean((2, 3)) ** 2).mean()) / 2
    clinical = ((made - image).mean((1, 2, 3)) ** 2).mean()
    expected = (made - image).abs().mean() + 2 * perceived + 100 * clinical + 0.5 * output.quantized.loss
    assert torch.allclose(losses.total, expected, rtol=1e-5)
    assert losses.perceptual.item() == pytest.approx(perceived.item(), rel=1e-4)
    assert losses.total.requires_grad and not losses.clinical.requires_grad


def test_feature_distance_passes_gradients_to_the_reconstruction_only() -> None:
    one, other = torch.rand(1, 1, 4, 4, requires_grad=True), torch.rand(1, 1, 4, 4, requires_grad=True)
    feature_distance(lambda x: x * 2, one, other).backward()
    assert one.grad is None and other.grad is not None and other.grad.abs().sum() > 0


def test_a_few_steps_learn_an_image() -> None:
    config = VQGANConfig(**{**TINY.__dict__, "ema_decay": 0.8})
    torch.manual_seed(0)
    model = VQGAN(config)
    keeper = CodeKeeper(model.quantize, decay=0.8, move_codes=True)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    x = torch.linspace(-1, 1, 16)
    image = torch.stack([x[:, None].expand(16, 16), x[None, :].expand(16, 16)])[:, None].contiguous()
    history = []
    for step in range(40):
        result = training_step(
            model,
            image,
            step=step,
            config=VQLossConfig(adversarial_weight=0.0),
            last_layer=model.decoder.conv_out.weight,
        )
        optimizer.zero_grad()
        result.generator.total.backward()
        optimizer.step()
        keeper.update(result.output.quantized)
        history.append(result.generator.reconstruction.item())
    assert min(history[-3:]) < 0.35 * history[0]
