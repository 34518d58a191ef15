"""Fréchet distance, NIQE, feature extractors and t-SNE."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from adamatch_ray.metrics.extractors import NamedExtractor, inception, xray_densenet
from adamatch_ray.metrics.image import FeatureStatistics, collect, fid, frechet_distance
from adamatch_ray.metrics.niqe import FEATURES, NiqeParameters, block_features, fit_parameters, niqe
from adamatch_ray.metrics.tsne import tsne
from benchmarks.metrics import metric_rows

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Array = NDArray[np.float64]


def features(count: int, dimensions: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimensions)) @ rng.normal(size=(dimensions, dimensions)) + rng.normal(
        size=dimensions
    )


def test_closed_forms_of_the_frechet_distance() -> None:
    d = 256
    zero, one, identity = np.zeros(d), np.ones(d), np.eye(d)
    assert frechet_distance(zero, identity, one, identity) == pytest.approx(d, abs=1e-9)
    assert frechet_distance(zero, identity, zero, 4 * identity) == pytest.approx(d, abs=1e-9)
    covariance = np.cov(features(1000, d, 0), rowvar=False)
    assert frechet_distance(one, covariance, one, covariance) == pytest.approx(0, abs=1e-6 * np.trace(covariance))


def test_frechet_distance_equals_the_matrix_square_root() -> None:
    first, second = features(300, 64, 1), features(400, 64, 2)
    found = fid(collect([first], 64), collect([second], 64), "x").value
    covariance1, covariance2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(covariance1 @ covariance2).real
    difference = first.mean(0) - second.mean(0)
    assert found == pytest.approx(difference @ difference + np.trace(covariance1 + covariance2 - 2 * root), rel=1e-9)


def test_singular_covariances_have_a_value() -> None:
    rng = np.random.default_rng(0)
    mean = np.zeros(8)
    axis = np.diag([1.0] + [0.0] * 7)
    assert frechet_distance(mean, axis, mean, 9 * axis) == pytest.approx((3 - 1) ** 2)
    assert frechet_distance(mean, np.zeros((8, 8)), mean, axis) == pytest.approx(1)
    few, many = rng.normal(size=(5, 32)), rng.normal(size=(500, 32))
    one_way = fid(collect([few], 32), collect([many], 32), "x")
    other_way = fid(collect([many], 32), collect([few], 32), "x")
    assert one_way.value == pytest.approx(other_way.value, rel=1e-6)
    assert "fewer real images than dimensions" in one_way.note
    assert "fewer generated images" in other_way.note
    assert fid(collect([many], 32), collect([many], 32), "x").note == ""


def test_batches_of_any_size_agree() -> None:
    rows = features(101, 16, 3) + 1e4  # a large mean is where raw second moments lose digits
    whole = collect([rows], 16)
    one_by_one = collect(np.array_split(rows, 101), 16)
    for found in (one_by_one, collect([rows[60:], *np.array_split(rows[:60], 7)], 16)):
        assert found.count == whole.count
        np.testing.assert_allclose(found.mean_D, whole.mean_D, rtol=1e-13)
        np.testing.assert_allclose(found.covariance_DD, whole.covariance_DD, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.covariance_DD, np.cov(rows, rowvar=False), rtol=1e-9)


def test_statistics_survive_the_disk(tmp_path: Path) -> None:
    statistics = collect([features(20, 4, 0)], 4)
    statistics.save(tmp_path / "real.npz")
    stored = np.load(tmp_path / "real.npz", allow_pickle=False)
    np.testing.assert_array_equal(stored["scatter"] / 19, statistics.covariance_DD)
    assert stored["count"] == 20


def test_bad_features_are_refused() -> None:
    statistics = FeatureStatistics(4)
    with pytest.raises(ValueError, match="not finite"):
        statistics.update(np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match=r"expected features \(B, 4\)"):
        statistics.update(np.zeros((2, 5)))
    statistics.update(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="at least two images"):
        fid(statistics, statistics, "x")
    with pytest.raises(ValueError, match="one extractor for both"):
        fid(collect([np.zeros((3, 4))], 4), collect([np.zeros((3, 5))], 5), "x")


def test_a_result_names_its_extractor() -> None:
    statistics = collect([features(20, 4, 0)], 4)
    result = fid(statistics, statistics, "own classifier, step 9")
    assert "own classifier, step 9" in str(result)
    assert json.loads(json.dumps(result.to_json()))["extractor"] == "own classifier, step 9"


def test_named_extractor_checks_both_ends() -> None:
    extractor = NamedExtractor("mean", 1, lambda images: images.float().mean(dim=(1, 2))[:, None])
    assert extractor(torch.full((2, 8, 8), 7, dtype=torch.uint8)).tolist() == [[7.0], [7.0]]
    with pytest.raises(ValueError, match="uint8"):
        extractor(torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="promises 3 features"):
        NamedExtractor("mean", 3, extractor.function)(torch.zeros(2, 8, 8, dtype=torch.uint8))


def test_xray_densenet_loads_a_state_dict(tmp_path: Path) -> None:
    from torchvision.models import densenet121

    with torch.device("meta"):  # its own initial weights would take longer to draw than all else here
        network = densenet121(weights=None, num_classes=18)
        network.features.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    draw = torch.Generator().manual_seed(1)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    state = {name: torch.rand(shape, generator=draw) / max(shape.numel(), 1) ** 0.5 for name, shape in shapes.items()}
    network.load_state_dict(state, assign=True)
    save_file(network.state_dict(), tmp_path / "all.safetensors")
    torch.save(network.state_dict(), tmp_path / "all.pt")
    images = torch.randint(0, 256, (2, 96, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = xray_densenet(tmp_path / "all.safetensors")
    found = extractor(images)
    assert found.shape == (2, 1024)
    assert "all" in extractor.name
    pixels = torch.nn.functional.interpolate((images[:, None] / 255 * 2 - 1) * 1024, size=(224, 224), mode="bilinear")
    with torch.inference_mode():
        expected = network.eval().features(pixels).relu().mean(dim=(2, 3))
    torch.testing.assert_close(found, expected)
    assert xray_densenet(tmp_path / "all.pt").dimensions == 1024
    save_file({"features.conv0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not the state dict"):
        xray_densenet(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="nothing is downloaded"):
        xray_densenet(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="nothing is downloaded"):
        inception(tmp_path / "absent.pth")


def textured(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = np.cumsum(np.cumsum(noise, axis=0), axis=1)
    smooth = smooth / np.abs(smooth).max() * 60
    return np.clip(128 + smooth + 12 * noise, 0, 255).astype(np.uint8)


def parameters() -> NiqeParameters:
    return fit_parameters((textured(384, 384, seed) for seed in range(10, 20)), "textures")


def test_niqe_equals_the_published_model() -> None:
    folder = SHARED / "knownanswers" / "niqe"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    live = NiqeParameters.load(folder / "modelparameters.mat")
    checked = 0
    for case in json.loads((folder / "expected.json").read_text())["cxr_reference"]:
        path = SHARED / case["path"]
        if path.exists():
            score = niqe(np.asarray(Image.open(path).convert("L"))[None], live)[0]
            # Where a block is flat, implementations differ in how they leave it out.
            tolerance = 5e-2 * case["niqe"] if case["nan_features"] else 5e-3
            assert score == pytest.approx(case["niqe"], abs=tolerance), case["path"]
            checked += 1
    assert checked >= 10


def test_niqe_ignores_flat_borders() -> None:
    pristine = parameters()
    image = textured(288, 288, 0)
    for grey in (0, 100, 255):  # at 100 rounding leaves traces of texture
        narrow, wide = (np.pad(image, border, constant_values=grey)[None] for border in (96, 288))
        assert np.isfinite(block_features(wide)[0]).all(axis=-1).sum() == 9, "only the picture's own blocks count"
        assert niqe(wide, pristine)[0] == pytest.approx(niqe(narrow, pristine)[0], rel=1e-9)
    with pytest.raises(ValueError, match="image 1 of the batch is flat"):
        niqe(np.stack([image, np.full_like(image, 37)]), pristine)


def test_niqe_rises_with_damage_and_not_with_the_batch() -> None:
    pristine = parameters()
    image = textured(288, 288, 1).astype(np.float64)
    rng = np.random.default_rng(0)
    damaged = [np.clip(image + rng.normal(scale=scale, size=image.shape), 0, 255) for scale in (0, 40, 90)]
    scores = niqe(np.stack(damaged), pristine)
    assert all(low < high for low, high in pairwise(scores))
    np.testing.assert_allclose(scores, [niqe(one[None], pristine)[0] for one in damaged], rtol=1e-12)


def test_niqe_works_on_a_generated_canvas() -> None:
    scores = niqe(textured(256, 256, 2)[None], parameters())
    assert np.isfinite(scores).all()
    with pytest.raises(ValueError, match="at least 96 pixels"):
        block_features(np.zeros((1, 64, 200)))


def test_niqe_parameters_survive_the_disk(tmp_path: Path) -> None:
    fitted = parameters()
    fitted.save(tmp_path / "pristine.npz")
    loaded = NiqeParameters.load(tmp_path / "pristine.npz")
    np.testing.assert_array_equal(loaded.covariance, fitted.covariance)
    assert loaded.source == "textures"
    with pytest.raises(ValueError, match="fit them on real images"):
        NiqeParameters.load(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=f"more than {FEATURES} sharp blocks"):
        fit_parameters([textured(192, 192, 0)], "too few")


def test_tsne_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    centres = 6 * np.eye(3, 12)
    found = tsne(np.concatenate([rng.normal(size=(40, 12)) + centre for centre in centres]), perplexity=10, steps=250)
    groups = found.points_S2.reshape(3, 40, 2)
    within = np.linalg.norm(groups - groups.mean(1, keepdims=True), axis=-1).max()
    between = min(np.linalg.norm(groups[i].mean(0) - groups[j].mean(0)) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert between > 1.5 * within
    with pytest.raises(ValueError, match="below a third"):
        tsne(np.zeros((10, 3)), perplexity=5)


@pytest.mark.slow
def test_benchmark_rows_are_json_and_name_their_peer() -> None:
    rows = json.loads(json.dumps(metric_rows(studies=10, dimensions=16)))
    assert len(rows) >= 4
    for row in rows:
        assert {"name", "ours", "peer", "ratio", "hardware", "versions", "date"} <= set(row)
        assert (row["peer"] is None) == (row["peer_name"] is None) == (row["ratio"] is None)
