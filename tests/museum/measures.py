"""Figures: likelihoods, ranges and means over held-out rows."""

from __future__ import annotations

from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

EXHIBITS = (
    Exhibit(
        name="last-rows-count-as-much-as-many",
        bug=55,
        file="train/judge.py",
        text="                sums[name] = sums.get(name, 0.0) + float(value) * len(part)\n",
        replacement="                sums[name] = sums.get(name, 0.0) + float(value) * most\n",
        tests=("tests/train/test_judge.py::test_a_figure_is_the_mean_over_rows[4-17]",),
    ),
    Exhibit(
        name="last-rows-dropped",
        bug=55,
        file="train/judge.py",
        text="        for cut in slices(len(batch), -(-len(batch) // most)):\n",
        replacement="        for cut in (slice(i * most, (i + 1) * most) for i in range(len(batch) // most)):\n",
        tests=("tests/train/test_judge.py::test_a_figure_is_the_mean_over_rows[4-17]",),
    ),
    Exhibit(
        name="range-taken-on-trust",
        bug=63,
        file="train/preflight.py",
        text="    if bool((images.abs() > 1 + 1e-4).any()):\n",
        replacement="    if False:\n",
        tests=("tests/train/test_preflight.py::test_data_that_cannot_be_used_are_refused",),
    ),
    Exhibit(
        name="pictures-from-zero-to-one",
        bug=63,
        file="data/pictures.py",
        text=".div_(top).mul_(2).sub_(1)\n",
        replacement=".div_(top)\n",
        tests=("tests/data/test_pictures.py::test_black_and_white_are_minus_one_and_one",),
    ),
    Exhibit(
        name="range-of-inputs-taken-on-trust",
        bug=63,
        file="system.py",
        text="    if not bool(((x >= low) & (x <= 1)).all()):\n",
        replacement="    if False:\n",
        tests=("tests/test_system.py::test_inputs_that_do_not_fit",),
    ),
    Exhibit(
        name="likelihood-of-latents",
        bug=64,
        file="diffusion/likelihood.py",
        text="    if not bool(on.all()):\n",
        replacement="    if False:\n",
        tests=("tests/paper/test_ddpm.py::test_equation_5_refuses_what_it_is_not_for",),
    ),
    Exhibit(
        name="bound-trained-on-latents",
        bug=64,
        file="train/tasks/diffusion.py",
        text='    if decoder.space.kind != "pixels":\n',
        replacement="    if False:\n",
        tests=("tests/train/test_shown.py::test_a_bound_is_refused_for_latents",),
    ),
    Exhibit(
        name="bits-with-the-wrong-offset",
        bug=65,
        file="diffusion/dequantise.py",
        text="    return 2 / (levels - 1)\n",
        replacement="    return 2 / levels\n",
        tests=("tests/oracle/test_ode_likelihood.py::test_uniform_data_has_all_its_bits",),
    ),
    Exhibit(
        name="noise-of-half-a-level-more",
        bug=65,
        file="diffusion/dequantise.py",
        text="        noise = ((rng.uniform(x.shape[1:]) - 0.5) * _width(levels)).to(x.device, x.dtype)\n",
        replacement="        noise = (rng.uniform(x.shape[1:]) * _width(levels)).to(x.device, x.dtype)\n",
        tests=("tests/oracle/test_ode_likelihood.py::test_uniform_data_has_all_its_bits",),
        note="Values then lie between the levels instead of around them.",
    ),
    Exhibit(
        name="bins-closed-at-the-ends",
        bug=65,
        file="diffusion/likelihood.py",
        text="    top, bottom = x > 1 - half, x < -1 + half\n",
        replacement="    top, bottom = x > 2, x < -2\n",
        tests=("tests/paper/test_ddpm.py::test_equation_13_sums_to_one",),
    ),
    Exhibit(
        name="bins-of-another-width",
        bug=65,
        file="diffusion/likelihood.py",
        text='(DDPM eq. 13)."""\n    half = 1 / (levels - 1)\n',
        replacement='(DDPM eq. 13)."""\n    half = 1 / levels\n',
        tests=("tests/paper/test_ddpm.py::test_equation_13_sums_to_one",),
    ),
)
