"""Precision: what low-precision numbers do to schedules, levels, norms and pictures."""

from __future__ import annotations

from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

EXHIBITS = (
    Exhibit(
        name="table-in-half-precision",
        bug=28,
        file="diffusion/schedule.py",
        text="        alpha, sigma = torch.exp(log_bar / 2), torch.sqrt(-torch.expm1(log_bar))\n",
        replacement=(
            "        bar = torch.exp(log_bar).half().double()\n"
            "        alpha, sigma = torch.sqrt(bar), torch.sqrt(1 - bar)\n"
        ),
        tests=("tests/diffusion/test_schedule.py::test_ddpm_values",),
    ),
    Exhibit(
        name="table-in-single-precision",
        bug=28,
        file="diffusion/schedule.py",
        text="        alpha, sigma = torch.exp(log_bar / 2), torch.sqrt(-torch.expm1(log_bar))\n",
        replacement=(
            "        bar = torch.exp(log_bar).float().double()\n"
            "        alpha, sigma = torch.sqrt(bar), torch.sqrt(1 - bar)\n"
        ),
        tests=("tests/diffusion/test_schedule.py::test_ddpm_values",),
    ),
    Exhibit(
        name="levels-in-the-pictures-precision",
        bug=29,
        file="diffusion/denoiser.py",
        text="precision = torch.promote_types(x_t.dtype, torch.float32)",
        replacement="precision = x_t.dtype",
        tests=("tests/diffusion/test_level_precision.py",),
    ),
    Exhibit(
        name="waves-in-the-levels-precision",
        bug=29,
        file="nn/embed.py",
        text="_waves(self.scale * values.float()[..., None] * frequencies,",
        replacement="_waves(self.scale * values.bfloat16()[..., None] * frequencies,",
        tests=(
            "tests/nn/test_conditions.py::test_embeddings_are_float32_in_low_precision",
            "tests/nn/test_conditions.py::test_sinusoidal_is_the_formula",
        ),
    ),
    Exhibit(
        name="no-noise-at-small-levels",
        bug=31,
        file="diffusion/process.py",
        text=('        """x_t = alpha_t x + sigma_t noise."""\n        alpha_t, sigma_t = self.schedule(t)\n'),
        replacement=(
            '        """x_t = alpha_t x + sigma_t noise."""\n'
            "        alpha_t, _ = self.schedule(t)\n"
            "        bar = (torch.as_tensor(alpha_t) ** 2).bfloat16()\n"
            "        sigma_t = torch.sqrt(1 - bar).double()\n"
            "        sigma_t = sigma_t if sigma_t.ndim else sigma_t.item()\n"
        ),
        tests=("tests/diffusion/test_process.py::test_diffuse_adds_noise_at_the_smallest_level",),
    ),
    Exhibit(
        name="norm-of-nothing",
        bug=32,
        file="nn/layers.py",
        text="        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + self.eps)\n",
        replacement="        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps * 1e-6)\n",
        tests=("tests/nn/test_autoencoder.py::test_rms_of_nothing_is_nothing",),
        note="1e-12 is 0 in float16.",
    ),
    Exhibit(
        name="what-is-not-finite-comes-out-black",
        bug=33,
        file="image.py",
        text="    if not bool(finite.all()):\n",
        replacement="    images = images.nan_to_num(-1)\n    if False:\n",
        tests=("tests/test_system.py::test_a_frame_that_is_not_finite_is_never_a_picture",),
    ),
    Exhibit(
        name="norm-of-nothing-in-attention",
        bug=32,
        file="nn/attention.py",
        text="        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)\n",
        replacement="        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.weight.to(x.dtype)\n",
        tests=("tests/nn/test_autoencoder.py::test_rms_of_nothing_is_nothing",),
    ),
    Exhibit(
        name="what-is-not-finite-is-shown-in-reports",
        bug=33,
        file="evaluate/grid.py",
        text="    if not finite.all():\n",
        replacement="    values = np.nan_to_num(values)\n    if False:\n",
        tests=("tests/evaluate/test_grid.py::test_non_finite_values_are_named_not_blackened",),
    ),
    Exhibit(
        name="weights-without-a-gradient-unnoticed",
        bug=54,
        file="train/preflight.py",
        text="        unreached = [self._names[p] for p in self._trained if self._names[p] not in self._moved]\n",
        replacement="        unreached: list[str] = []\n",
        tests=("tests/train/test_preflight.py::test_parameters_that_are_left_out_are_named",),
        note="Whatever cuts weights off from the loss is seen in the first step, or not at all.",
    ),
)
