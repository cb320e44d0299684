"""The common corruptions: what each does in closed form, and that an image is corrupted alike in any batch."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemble.core.errors import InputError
from sparsemble.core.results.corruptions import CORRUPTIONS
from sparsemble.core.types import Images, seeded
from sparsemble.evaluation.corruptions import TABLE, corrupt, parameters_for
from sparsemble.evaluation.corruptions.blur import blur_along, zoom
from sparsemble.evaluation.corruptions.weather import plasma

BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate")
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog")
HALF_LEVEL = 0.5 / 255 + 1e-6


def photos(count: int = 4, channels: int = 3, height: int = 32, width: int = 32) -> Images:
    """Smooth random images in 256 levels."""
    coarse = torch.rand(count, channels, 4, 4, generator=seeded(0))
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * x).round() / 255


def corrupted(name: str, x: Images, severity: int = 3, seed: int = 0) -> Images:
    return corrupt(name, severity, x, seed=seed, positions=range(len(x)))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 28, 30), (2, 40, 33), (3, 4, 4)])
def test_images_keep_their_shape_and_have_256_levels(name: str, shape: tuple[int, int, int]) -> None:
    x = photos(2, *shape)
    for severity in range(1, 6):
        changed = corrupted(name, x, severity)
        assert changed.shape == x.shape
        assert changed.dtype == torch.float32
        assert 0 <= changed.min() <= changed.max() <= 1
        assert ((255 * changed).round() / 255 - changed).abs().max() < 1e-6
    assert (changed - x).abs().mean() > 1e-4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch_and_part(name: str) -> None:
    x = photos(5)
    whole = corrupted(name, x)
    for i in (0, 3):
        assert torch.equal(corrupt(name, 3, x[i : i + 1], seed=0, positions=[i]), whole[i : i + 1])
    part = torch.tensor([4, 1])
    assert torch.equal(corrupt(name, 3, x[part], seed=0, positions=part.tolist()), whole[part])


@pytest.mark.parametrize("name", [*RANDOM, "elastic_transform"])
def test_chance_depends_on_seed_image_and_severity(name: str) -> None:
    x = photos(1).expand(2, -1, -1, -1)
    first, second = corrupted(name, x)
    assert not torch.equal(first, second)
    assert not torch.equal(first, corrupted(name, x, seed=1)[0])
    assert torch.equal(first, corrupted(name, x)[0])


def test_every_corruption_has_five_settings_for_both_sizes() -> None:
    assert tuple(TABLE) == CORRUPTIONS
    for corruption in TABLE.values():
        assert len(corruption.small) == len(corruption.large) == 5
    assert [parameters_for(*size) for size in ((8, 8), (96, 200), (97, 97))] == [
        "CIFAR-10-C",
        "CIFAR-10-C",
        "ImageNet-C",
    ]
    assert [len(factors) for factors in TABLE["zoom_blur"].small] == [7, 12, 16, 21, 26]  # as arange rounds


def test_large_images_get_the_parameters_of_imagenet_c() -> None:
    x = photos(1, 3, 112, 112)
    mean = x.mean((2, 3), keepdim=True)
    assert (corrupted("contrast", x, 1) - (0.4 * (x - mean) + mean)).abs().max() <= HALF_LEVEL
    assert 0.05 < (corrupted("gaussian_noise", 0.5 + 0 * x, 1) - 0.5).std() < 0.085


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.04), (2, 0.06), (3, 0.08), (4, 0.09), (5, 0.1)])
def test_gaussian_noise_has_its_deviation(severity: int, deviation: float) -> None:
    noise = corrupted("gaussian_noise", torch.full((8, 3, 32, 32), 0.5), severity) - 0.5
    assert float(noise.std()) == pytest.approx(deviation, rel=0.03)
    assert abs(float(noise.mean())) < 0.01 * 5 * deviation


def test_shot_noise_is_poisson_and_grows_with_the_light() -> None:
    grey = torch.full((8, 3, 32, 32), 128 / 255)
    assert float(corrupted("shot_noise", grey, 5).var()) == pytest.approx(128 / 255 / 50, rel=0.05)
    assert not corrupted("shot_noise", 0 * grey, 5).any()


def test_impulse_noise_hits_its_fraction_with_black_and_white() -> None:
    noisy = corrupted("impulse_noise", torch.full((8, 3, 32, 32), 102 / 255), 5)
    hit = (noisy - 102 / 255).abs() > 1e-6
    assert float(hit.float().mean()) == pytest.approx(0.07, rel=0.1)
    assert set(noisy[hit].tolist()) == {0.0, 1.0}
    assert float(noisy[hit].mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", BLURS)
def test_what_moves_pixels_leaves_a_plain_image(name: str) -> None:
    plain = torch.full((2, 3, 32, 32), 51 / 255)
    for severity in range(1, 6):
        assert torch.equal(corrupted(name, plain, severity), plain)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur"])
def test_blurs_keep_light_away_from_borders(name: str) -> None:
    x = torch.zeros(2, 1, 33, 33)
    x[:, :, 14:19, 14:19] = 1.0
    assert corrupted(name, x, 5).sum((1, 2, 3)) == pytest.approx(25, rel=0.03)


def test_defocus_of_a_point_is_a_round_disk() -> None:
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 16] = 1.0
    disk = corrupted("defocus_blur", x, 5)[0, 0]
    assert (disk > 0.02).sum() == 9  # within 1.5 pixels of the centre
    assert torch.equal(disk, disk.T)
    assert torch.equal(disk, disk.flip(0))


def test_the_mildest_glass_takes_every_pixel_from_a_neighbour() -> None:
    x = photos(1, 1, 12, 12)
    glass = corrupted("glass_blur", x, 1)[0, 0]
    for row in range(2, 12):
        for column in range(2, 12):
            near = x[0, 0, row - 1 : row + 1, column - 1 : column + 1]
            assert (near - glass[row, column]).abs().min() <= HALF_LEVEL
    assert torch.equal(glass[:2], x[0, 0, :2])
    assert not torch.equal(glass, x[0, 0])


def test_motion_goes_one_way_along_a_line() -> None:
    point = np.zeros((3, 1, 41, 41))
    point[:, :, 20, 20] = 1.0
    rows, columns = (blur_along(point, 9, 2.5, np.array([0.0, 90.0, 45.0]))[:, 0].sum(axis) for axis in (2, 1))
    assert (rows[0] > 0).sum() == 1  # horizontal
    assert (columns[1] > 0).sum() == 1  # vertical
    weights = np.exp(-0.5 * (np.arange(19) / 2.5) ** 2)
    expected = (weights / weights.sum())[:6]
    assert columns[0][20:14:-1] == pytest.approx(expected, abs=1e-6)
    assert rows[1][20:14:-1] == pytest.approx(expected, abs=1e-6)
    assert not columns[0][21:].any()
    assert (rows[2] > 0).sum() > 5


def test_zoom_enlarges_about_the_middle() -> None:
    ramp = np.broadcast_to(np.arange(32.0), (1, 1, 32, 32))
    assert zoom(ramp, 1.0) == pytest.approx(ramp)
    enlarged = zoom(ramp, 1.25)
    assert np.diff(enlarged[0, 0, 5]) == pytest.approx(1 / 1.25, rel=0.03)
    assert float(enlarged.mean()) == pytest.approx(float(ramp.mean()), abs=0.6)


def test_brightness_raises_the_value_and_keeps_hue_and_saturation() -> None:
    x = torch.tensor([[0.4, 0.2, 0.1], [0.0, 0.0, 0.0], [0.9, 0.45, 0.9]]).view(3, 3, 1, 1).expand(-1, -1, 8, 8)
    bright = corrupted("brightness", x, 5)[:, :, 0, 0]
    expected = torch.tensor([[0.7, 0.35, 0.175], [0.3, 0.3, 0.3], [1.0, 0.5, 1.0]])
    assert (bright - expected).abs().max() <= HALF_LEVEL


def test_contrast_moves_values_towards_the_mean_of_their_channel() -> None:
    x = photos()
    mean = x.mean((2, 3), keepdim=True)
    assert (corrupted("contrast", x, 5) - (0.15 * (x - mean) + mean)).abs().max() <= HALF_LEVEL


def test_fog_is_scaled_to_the_brightest_value_of_an_image() -> None:
    x = photos()
    foggy = corrupted("fog", x, 5)
    brightest = x.amax((1, 2, 3))
    assert (foggy.amax((1, 2, 3)) <= brightest + HALF_LEVEL).all()
    assert (foggy.amin((1, 2, 3)) >= (x.amin((1, 2, 3)) * brightest / (brightest + 1.5)) - HALF_LEVEL).all()
    assert not corrupted("fog", 0 * x, 5).any()


@pytest.mark.parametrize(("side", "size"), [(32, 32), (33, 64), (224, 256)])
def test_a_fractal_fills_zero_to_one_and_is_smoother_where_it_decays_faster(side: int, size: int) -> None:
    def roughness(decay: float) -> float:
        clouds = plasma(side, decay, [np.random.default_rng(i) for i in range(4)])
        assert clouds.shape == (4, size, size)
        assert clouds.min((1, 2)) == pytest.approx(0)
        assert clouds.max((1, 2)) == pytest.approx(1)
        return float(np.abs(np.diff(clouds, axis=1)).mean())

    assert roughness(1.3) > roughness(1.75) > roughness(3)


def test_frost_and_snow_whiten() -> None:
    x = photos() * 0.5
    for name in ("frost", "snow"):
        assert corrupted(name, x, 5).mean() > x.mean() + 0.05
    frost = corrupted("frost", 0 * x, 5).mean((0, 2, 3))
    assert frost[0] < frost[1] < frost[2]  # bluish


def test_snow_falls_in_two_opposite_directions() -> None:
    flakes = corrupted("snow", torch.zeros(2, 1, 32, 32), 5) - 0.2 * 0.5
    assert torch.allclose(flakes, flakes.flip(2, 3), atol=1e-6)
    assert flakes.max() > 0.05


def test_the_mildest_elastic_transform_is_affine() -> None:
    ramp = (torch.arange(32.0) / 64 + 0.2).expand(1, 1, 32, 32)
    inner = corrupted("elastic_transform", ramp, 1)[0, 0, 10:22, 10:22].double()
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    design = torch.stack([rows.flatten(), columns.flatten(), torch.ones(144)], 1).double()
    plane = design @ torch.linalg.lstsq(design, inner.flatten()[:, None]).solution
    assert (plane[:, 0] - inner.flatten()).abs().max() <= 2 * HALF_LEVEL


def test_jpeg_and_pixels_are_those_of_pillow() -> None:
    x = photos(1)
    picture = Image.fromarray((255 * x[0]).round().byte().permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=40)
    small = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    for name, expected in (("jpeg_compression", Image.open(buffer)), ("pixelate", small)):
        pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1).float() / 255
        assert torch.allclose(corrupted(name, x, 5)[0], pixels)


def test_what_cannot_be_corrupted_is_refused() -> None:
    for name, severity in (("rain", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(InputError, match=r"is no corruption; known: gaussian_noise, .*severities 1 to 5"):
            corrupted(name, photos(), severity)
    with pytest.raises(InputError, match="3 x 9 pixels are too small"):
        corrupted("fog", photos(1, 3, 3, 9))
