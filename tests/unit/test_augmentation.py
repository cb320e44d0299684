"""Augmentation: each operation against its definition, drawn for each image from the generator."""

import colorsys
import math

import pytest
import torch
import torch.nn.functional as F

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.data.augmentation import OPERATIONS, Augmentation, PerImage
from sparsemble.data.augmentation_ops import affine, blend, grey, resized_crop, turn_hue

X = torch.rand(24, 3, 9, 7, generator=seeded(1))
ALL = Augmentation(
    random_resized_crop=(0.3, 1.0), flip=True, crop=1, rand_augment=0.5, jitter=(0.4, 0.4, 0.4, 0.2), cutout=2
)


class TestCommon:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_same_shape_in_range_and_a_function_of_the_generator(self, channels: int) -> None:
        x = X[:, :channels]
        first, again, other = (ALL(x, seeded(seed)) for seed in (0, 0, 1))
        assert first.shape == x.shape
        assert first.min() >= 0
        assert first.max() <= 1
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_images_are_changed_each_for_itself(self) -> None:
        """The draws of the others do not move when one image is another one."""
        other = X.clone()
        other[3] = 0.5
        changed = (ALL(X, seeded(0)) != ALL(other, seeded(0))).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [3]

    def test_what_there_was_before_draws_as_before(self) -> None:
        """Flip, then shift, then cutout: the draws in this order and no others."""
        rng, ours = seeded(4), seeded(4)
        Augmentation(crop=2, flip=True, cutout=3)(X, ours)
        torch.rand(len(X), generator=rng)
        torch.randint(0, 5, (2, len(X)), generator=rng)
        for side in X.shape[2:]:
            torch.randint(0, side, (len(X), 1), generator=rng)
        assert torch.equal(rng.get_state(), ours.get_state())


class TestRandomResizedCrop:
    def test_boxes_are_interpolated_by_themselves(self) -> None:
        boxes = torch.tensor([[0, 0, 9, 7], [2, 1, 4, 3], [8, 6, 1, 1], [0, 3, 9, 2]]).float()
        for image, box, result in zip(X, boxes.int().tolist(), resized_crop(X[:4], boxes), strict=False):
            top, left, down, across = box
            part = image[None, :, top : top + down, left : left + across]
            expected = F.interpolate(part, (9, 7), mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(result, expected)

    def test_area_ratio_and_place_are_those_asked_for(self) -> None:
        """A ramp over rows and one over columns shows which box was taken."""
        side = 64
        ramp = torch.arange(side) / (side - 1)
        x = torch.stack([ramp[:, None].expand(side, side), ramp.expand(side, side)])[None].repeat(400, 1, 1, 1)
        cropped = Augmentation(random_resized_crop=(0.25, 0.5), ratio=(0.5, 2.0))(x, seeded(2)) * (side - 1)
        down = cropped[:, 0, -1, 0] - cropped[:, 0, 0, 0] + 1
        across = cropped[:, 1, 0, -1] - cropped[:, 1, 0, 0] + 1
        area, ratio = down * across / side**2, across / down
        assert 0.24 < area.min() < 0.28
        assert 0.47 < area.max() < 0.52
        assert 0.48 < ratio.min() < 0.6
        assert 1.7 < ratio.max() < 2.1
        assert abs(float(ratio.log().mean())) < 0.1
        assert cropped[:, 0].amin() < 1
        assert cropped[:, 0].amax() > side - 2

    def test_the_whole_area_is_the_image(self) -> None:
        whole = Augmentation(random_resized_crop=(1.0, 1.0), ratio=(1.0, 1.0))
        square = X[:, :, :7]
        torch.testing.assert_close(whole(square, seeded(0)), square)

    def test_where_no_draw_fits_the_largest_centred_box_is_taken(self) -> None:
        flat = Augmentation(random_resized_crop=(1.0, 1.0), ratio=(3.0, 3.0))(X, seeded(0))
        expected = F.interpolate(X[:, :, 3:5], (9, 7), mode="bilinear", align_corners=False)
        torch.testing.assert_close(flat, expected)


class TestColours:
    def test_hue_is_that_of_the_hsv_cone(self) -> None:
        turns = torch.linspace(-0.5, 0.5, len(X))
        turned = turn_hue(X, turns)
        for image, turn, result in zip(X, turns.tolist(), turned, strict=True):
            for pixel, changed in zip(image.flatten(1).T.tolist(), result.flatten(1).T.tolist(), strict=True):
                hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
                expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
                assert changed == pytest.approx(expected, abs=1e-5)

    def test_grey_pixels_have_no_hue(self) -> None:
        x = torch.rand(4, 1, 5, 5, generator=seeded(0)).expand(-1, 3, -1, -1)
        torch.testing.assert_close(turn_hue(x, torch.full((4,), 0.3)), x)

    def test_jitter_is_a_factor_an_image(self) -> None:
        x = X * 0.5
        factors = Augmentation(jitter=(0.5, 0, 0, 0))(x, seeded(0)) / x
        torch.testing.assert_close(factors, factors[:, :1, :1, :1].expand_as(factors), rtol=1e-4, atol=1e-5)
        assert 0.5 <= factors.min() < 0.7
        assert 1.3 < factors.max() <= 1.5

    def test_saturation_goes_to_grey_and_contrast_to_the_mean(self) -> None:
        zero = torch.zeros(len(X))
        torch.testing.assert_close(blend(X, grey(X), zero), grey(X).expand_as(X))
        mean = grey(X).mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(blend(X, mean, zero), mean.expand_as(X))

    def test_grey_images_keep_one_channel(self) -> None:
        x = X[:, :1]
        torch.testing.assert_close(Augmentation(jitter=(0, 0, 0.9, 0.5))(x, seeded(0)), x)


class TestRandAugment:
    def test_nearly_nothing_at_nearly_no_strength(self) -> None:
        torch.testing.assert_close(Augmentation(rand_augment=1e-6)(X, seeded(0)), X, atol=1e-4, rtol=0)

    def test_rotation_is_about_the_centre_also_of_oblong_images(self) -> None:
        angle, ratio = math.pi / 2, 9 / 7
        matrix = torch.tensor([[math.cos(angle), -math.sin(angle) * ratio, 0], [math.sin(angle) / ratio, 0, 0]])
        turned = affine(X, matrix.expand(len(X), -1, -1))
        inner = X[:, :, 1:8]  # what fits in both directions
        torch.testing.assert_close(turned[:, :, 1:8], inner.rot90(1, (2, 3)), atol=1e-4, rtol=0)

    def test_every_operation_occurs(self) -> None:
        assert len(OPERATIONS) == 9
        x = X[:1].repeat(400, 1, 1, 1)
        kinds = torch.unique((Augmentation(rand_augment=0.6)(x, seeded(0)) * 1e3).round().flatten(1), dim=0)
        assert len(kinds) > 100  # of 17 x 17 pairs with a sign, many of which commute


def test_each_operation_is_that_of_torchvision() -> None:
    """Skipped where torchvision does not import; by hand it agreed to 4e-6 with torchvision 0.29.1."""
    try:
        from torchvision.transforms.v2 import functional as reference
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import: {error}")
    factors = torch.linspace(0, 2, len(X))
    mean = grey(X).mean((1, 2, 3), keepdim=True)
    ours = {
        "adjust_brightness": (blend(X, torch.zeros_like(X), factors), factors),
        "adjust_contrast": (blend(X, mean, factors), factors),
        "adjust_saturation": (blend(X, grey(X), factors), factors),
        "adjust_hue": (turn_hue(X, factors / 4 - 0.25), factors / 4 - 0.25),
    }
    for name, (changed, sizes) in ours.items():
        apply = getattr(reference, name)
        expected = torch.stack([apply(image, size) for image, size in zip(X, sizes.tolist(), strict=True)])
        torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0, msg=name)
    box = torch.tensor([[2.0, 1.0, 4.0, 3.0]]).expand(len(X), -1)
    cropped = reference.resized_crop(X, 2, 1, 4, 3, [9, 7], antialias=True)
    torch.testing.assert_close(resized_crop(X, box), cropped, atol=1e-5, rtol=0)


class TestPerImage:
    def test_applies_a_function_with_draws_from_the_generator(self) -> None:
        change = PerImage(lambda image: image + torch.rand(()))
        state = torch.get_rng_state()
        first, again, other = (change(X, seeded(seed)) for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.max() == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"random_resized_crop": (0.5,)},
            r"random_resized_crop = \[0.5\] must be two numbers in order, above 0 and at",
        ),
        ({"random_resized_crop": (0.5, 1.5)}, "at most 1"),
        ({"random_resized_crop": (0.9, 0.5)}, "in order"),
        ({"ratio": (0.0, 1.0)}, r"ratio = \[0.0, 1.0\] must be two numbers in order, above 0$"),
        ({"ratio": (1.0, math.inf)}, "ratio"),
        ({"rand_augment": 1.1}, r"rand_augment = 1.1 must lie in \[0, 1\]"),
        ({"jitter": (0.1, 0.1, 0.1)}, "jitter = .* must be four numbers of 0 or more"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, r"hue up to 0\.5"),
        ({"jitter": (0.1, -0.1, 0.1, 0.1)}, "0 or more"),
    ],
)
def test_refuses_in_a_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Augmentation(**settings)  # type: ignore[arg-type]


def test_colours_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="jitter needs images of one or three channels, got 4"):
        Augmentation(jitter=(0.1, 0, 0, 0)).check((4, 8, 8))
    Augmentation(crop=3).check((4, 8, 8))
