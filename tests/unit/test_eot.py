"""Expectation over transformations: what the averaged classifier sees, and that what is found withstands it."""

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks import EOT, FMN, PGD, CarliniWagner
from sparsemble.attacks import eot as module
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from tests.helpers import LinearClassifier, margin, predicted


class Seen(nn.Module):
    """Keeps what it is given, and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images.append(x.detach())
        return x.flatten(1)


def ramp() -> Tensor:
    """Return an image that grows evenly along both sides."""
    line = torch.linspace(0.2, 0.5, 16)
    return (line[:, None] + 0.5 * line)[None, None]


def test_without_transformations_the_mean_is_the_model() -> None:
    model, x = LinearClassifier(3), torch.rand(5, 3, 4, 4, generator=seeded(1))
    torch.testing.assert_close(EOT(passes=7).expected(model, seeded(0))(x), model(x))


def test_noise_is_drawn_anew_for_every_pass_and_shared_by_the_images() -> None:
    model, x = Seen(), torch.full((2, 1, 16, 16), 0.5)
    EOT(passes=40, noise=0.1).expected(model, seeded(0))(x)
    noise = torch.stack(model.images) - x
    assert len(noise) == 40
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert not torch.equal(noise[0], noise[1])
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)
    assert abs(float(noise.mean())) < 0.005


def test_a_shift_moves_a_ramp_by_its_slope_and_a_new_size_changes_the_slope() -> None:
    x, middle = ramp(), slice(5, 11)
    slope = float(x[0, 0, 6, 6] - x[0, 0, 5, 6])
    for settings, changed in (({"shift": 2.0}, "level"), ({"resize": 0.3}, "slope")):
        model = Seen()
        EOT(passes=30, **settings).expected(model, seeded(0))(x)
        seen = torch.cat(model.images)[:, 0, middle, middle]
        steep = seen.diff(dim=1) / slope
        if changed == "level":
            moved = ((seen - x[0, 0, middle, middle]) / slope).flatten(1)
            torch.testing.assert_close(steep, torch.ones_like(steep), atol=1e-4, rtol=0)
            torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-3, rtol=0)
            assert 1.5 < moved.abs().max() <= 3.0  # two pixels down, and half as much for two across
        else:
            torch.testing.assert_close(steep, steep[:, :1, :1].expand_as(steep), atol=1e-4, rtol=0)
            assert (1 / steep - 1).abs().max() <= 0.3 + 1e-4
            assert steep.max() > 1.1
            assert steep.min() < 0.9


def test_what_it_finds_stays_adversarial_under_noise_where_a_first_crossing_does_not() -> None:
    model, x = LinearClassifier(2), torch.rand(30, 3, 4, 4, generator=seeded(2)) * 0.2 + 0.4
    y, threat = predicted(model, x), ThreatModel(eps=0.3)
    noise = 0.03 * torch.randn(50, *x.shape, generator=seeded(3))

    def withstand(x_adv: Tensor) -> float:
        return float(torch.stack([margin(model, x_adv + n, y) > 0 for n in noise]).float().mean())

    plain = PGD(step_size=0.02)
    robust = EOT(attack=PGD(step_size=0.02, stop_at_success=False), passes=4, noise=0.03)
    assert withstand(plain(model, x, y, threat, rng=seeded(0))) < 0.9
    assert withstand(robust(model, x, y, threat, rng=seeded(0))) > 0.99


def test_computing_activations_again_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = LinearClassifier(4), torch.rand(6, 3, 4, 4, generator=seeded(4))
    y, threat = predicted(model, x), ThreatModel(eps=1e-3)
    attack = EOT(attack=PGD(steps=3), passes=3, noise=0.05)
    kept = attack(model, x, y, threat, rng=seeded(0))
    monkeypatch.setattr(module, "HELD", 0)
    with count_passes(model) as passes:
        assert torch.equal(attack(model, x, y, threat, rng=seeded(0)), kept)
    assert passes.backward == 6 * 3 * 3


def test_works_in_the_norms_of_the_attack_inside() -> None:
    model, x = LinearClassifier(3), torch.rand(2, 3, 4, 4, generator=seeded(5))
    assert EOT(attack=FMN()).norms == FMN.norms
    with pytest.raises(InputError, match='eot works in l2 only, not in linf; use "cw_linf" for linf'):
        EOT(attack=CarliniWagner())(model, x, predicted(model, x), ThreatModel(), rng=seeded(0))


@pytest.mark.parametrize("settings", [{"passes": 0}, {"noise": -1.0}, {"shift": -1.0}, {"resize": 1.0}], ids=str)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        EOT(**settings)  # type: ignore[arg-type]
