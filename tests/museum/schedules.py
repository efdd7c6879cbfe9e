"""Schedules, grids and parameterizations: the tables that everything else believes."""

from __future__ import annotations

from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

_GAUSSIAN = "tests/oracle/test_gaussian.py::test_every_grid"

EXHIBITS = (
    Exhibit(
        name="zero-terminal-not-reached",
        bug=1,
        file="diffusion/schedule.py",
        text="    root = (root - root[-1]) * root[0] / (root[0] - root[-1])\n",
        replacement="    root = ((root - root[-1]) * root[0] / (root[0] - root[-1])).clamp(min=1e-4)\n",
        tests=("tests/diffusion/test_schedule.py::test_zero_terminal",),
    ),
    Exhibit(
        name="trailing-never-visits-the-end",
        bug=1,
        file="diffusion/times.py",
        text="    return _ended([round(T - i * stride) / T for i in range(steps)], end)\n",
        replacement="    return _ended([(round(T - i * stride) - 1) / T for i in range(steps)], end)\n",
        tests=("tests/diffusion/test_times.py::test_foreign_spacings",),
        raises="ValueError",
        note="As many steps as the table has entries would then end twice at 0, which is refused.",
    ),
    Exhibit(
        name="noise-predicted-where-nothing-is-left",
        bug=2,
        file="diffusion/parameterization.py",
        text="        if alpha < 1e-6:\n",
        replacement="        if alpha < 0:\n",
        tests=("tests/diffusion/test_parameterization.py::test_epsilon_is_refused_where_alpha_reaches_zero",),
    ),
    Exhibit(
        name="min-snr-divides-by-the-snr",
        bug=3,
        file="diffusion/weight.py",
        text="        return self.on_data(_snr(process, t)) * of_data(process, parameterization, t)\n",
        replacement=(
            "        snr = _snr(process, t)\n"
            "        return self.on_data(snr) / snr * of_noise(process, parameterization, t)\n"
        ),
        tests=("tests/diffusion/test_parameterization.py::test_zero_terminal_tables_are_learned_to_their_end",),
        note="The same weight wherever the SNR is not 0, and 0 / 0 where it is.",
    ),
    Exhibit(
        name="snr-table-before-rescaling",
        bug=4,
        file="diffusion/schedule.py",
        text="        return alpha, sigma, 2 * (alpha.log() - sigma.log())\n",
        replacement=(
            "        import dataclasses\n"
            "\n"
            "        plain = dataclasses.replace(self, zero_terminal=False).betas()\n"
            "        bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-plain).cumsum(0)])\n"
            "        return alpha, sigma, bar - torch.log(-torch.expm1(bar))\n"
        ),
        tests=("tests/diffusion/test_schedule.py::test_inverse",),
    ),
    Exhibit(
        name="rescaling-flag-ignored",
        bug=5,
        file="diffusion/schedule.py",
        text=(
            "        betas = torch.linspace(self.first**0.5, self.last**0.5, self.steps, dtype=torch.float64, "
            'device="cpu") ** 2\n'
            "        return _zero_terminal(betas) if self.zero_terminal else betas\n"
        ),
        replacement=(
            "        betas = torch.linspace(self.first**0.5, self.last**0.5, self.steps, dtype=torch.float64, "
            'device="cpu") ** 2\n'
            "        return betas\n"
        ),
        tests=("tests/diffusion/test_schedule.py::test_zero_terminal",),
    ),
    Exhibit(
        name="unknown-key-ignored",
        bug=5,
        file="config.py",
        text="        if key not in known and key not in skip:\n",
        replacement="        if False:\n",
        tests=("tests/test_config.py::test_unknown_keys_name_the_nearest",),
    ),
    Exhibit(
        name="learned-range-without-logarithms",
        bug=6,
        file="diffusion/process.py",
        text="        return torch.exp(estimate.mix * high + (1 - estimate.mix) * low)\n",
        replacement=(
            "        high, low = (torch.exp(torch.as_tensor(each, dtype=torch.float64)) for each in (high, low))\n"
            "        return estimate.mix * high + (1 - estimate.mix) * low\n"
        ),
        tests=("tests/diffusion/test_process.py::test_learned_variance_is_log_linear_between_the_bounds",),
    ),
    Exhibit(
        name="data-prediction-taken-for-noise",
        bug=7,
        file="diffusion/parameterization.py",
        text="        return Coefficients(0.0, 1.0, 1.0, 0.0)\n",
        replacement="        return Coefficients(1 / alpha, -sigma / alpha, 1.0, 0.0)\n",
        tests=(f"{_GAUSSIAN}[ddim 0-LinearBetas]",),
    ),
    Exhibit(
        name="uniform-steps-cut-to-whole-ones",
        bug=10,
        file="diffusion/times.py",
        text="    return _on_entries(schedule, [shifted(i / steps, shift) for i in range(steps, -1, -1)])\n",
        replacement=(
            "    whole = 1000 // steps / 1000\n"
            "    return _on_entries(schedule, [shifted(i * whole, shift) for i in range(steps, -1, -1)])\n"
        ),
        tests=("tests/diffusion/test_spacing.py::test_uniform_steps_are_even",),
    ),
    Exhibit(
        name="uniform-steps-not-even",
        bug=10,
        file="diffusion/times.py",
        text="    return _on_entries(schedule, [shifted(i / steps, shift) for i in range(steps, -1, -1)])\n",
        replacement=(
            "    whole = 1000 // steps / 1000\n"
            "    even = [1.0, *(i * whole for i in range(steps - 1, -1, -1))]\n"
            "    return _on_entries(schedule, [shifted(t, shift) for t in even])\n"
        ),
        tests=("tests/diffusion/test_spacing.py::test_uniform_steps_are_even",),
        note="All that is left over goes into the first stride.",
    ),
    Exhibit(
        name="last-level-twice",
        bug=11,
        file="diffusion/times.py",
        text="    return (*times, 0.0)\n\n\ndef _shares",
        replacement="    return (*times, times[-1], 0.0)\n\n\ndef _shares",
        tests=("tests/diffusion/test_times.py::test_karras", "tests/diffusion/test_times.py::test_counts_and_order"),
    ),
    Exhibit(
        name="levels-end-in-noise",
        bug=12,
        file="diffusion/times.py",
        text="    return (*times, 0.0)\n\n\ndef _shares",
        replacement="    return (*times, times[-1] / 2)\n\n\ndef _shares",
        tests=("tests/diffusion/test_times.py::test_counts_and_order",),
    ),
    Exhibit(
        name="penultimate-level-dropped",
        bug=13,
        file="diffusion/times.py",
        text="    return _at_levels(schedule, [(high + share * (low - high)) ** rho for share in _shares(steps)])\n",
        replacement=(
            "    levels = [(high + share * (low - high)) ** rho for share in _shares(steps)]\n"
            "    return _at_levels(schedule, levels[:-1] if len(levels) > 1 else levels)\n"
        ),
        tests=("tests/diffusion/test_times.py::test_counts_and_order",),
    ),
    Exhibit(
        name="first-level-squared",
        bug=18,
        file="diffusion/process.py",
        text="        return max(1.0, self.schedule(t)[1])\n",
        replacement="        return max(1.0, self.schedule(t)[1] ** 2)\n",
        tests=("tests/diffusion/test_schedule.py::test_prior_std",),
    ),
    Exhibit(
        name="flow-never-arrives",
        bug=19,
        file="diffusion/schedule.py",
        text="        return 1 - t, t\n",
        replacement="        return 1 - t, t.clamp(min=1e-3)\n",
        tests=("tests/diffusion/test_schedule.py::test_ends",),
    ),
    Exhibit(
        name="final-alpha-of-the-first-entry",
        bug=22,
        file="diffusion/times.py",
        text="    return (*times, end)\n",
        replacement="    return (*times, end or min(1e-3, times[-1] / 2))\n",
        tests=("tests/diffusion/test_times.py::test_ends_are_stated",),
        note="Both ends are conventions with a name; the one that was asked for has to come.",
    ),
    Exhibit(
        name="final-alpha-always-one",
        bug=22,
        file="diffusion/sampler.py",
        text="    moved: Tensor = keep * x + (process.schedule(s)[0] - keep * process.schedule(t)[0]) * mean\n",
        replacement=(
            "    final = 1.0 if s <= 1e-3 else process.schedule(s)[0]\n"
            "    moved: Tensor = keep * x + (final - keep * process.schedule(t)[0]) * mean\n"
        ),
        tests=(f"{_GAUSSIAN}[ddim 0-ScaledLinearBetas]",),
        note="Grids that end at 1/T would be told from those that end at 0 by nothing else.",
    ),
    Exhibit(
        name="leading-off-by-one",
        bug=23,
        file="diffusion/times.py",
        text="    times = [(i * (T // steps) + offset + 1) / T for i in range(steps - 1, -1, -1)]\n",
        replacement="    times = [(i * (T // steps) + offset) / T for i in range(steps - 1, -1, -1)]\n",
        tests=("tests/diffusion/test_times.py::test_foreign_spacings[50]",),
    ),
    Exhibit(
        name="shifted-twice",
        bug=25,
        file="diffusion/times.py",
        text="    return _on_entries(schedule, [shifted(t, by) for t in inner(schedule)])\n",
        replacement="    return _on_entries(schedule, [shifted(shifted(t, by), by) for t in inner(schedule)])\n",
        tests=("tests/diffusion/test_times.py::test_shift_goes_around_any_grid",),
    ),
    Exhibit(
        name="uniform-shifted-twice",
        bug=25,
        file="diffusion/times.py",
        text="    return _on_entries(schedule, [shifted(i / steps, shift) for i in range(steps, -1, -1)])\n",
        replacement=(
            "    once = [shifted(i / steps, shift) for i in range(steps, -1, -1)]\n"
            "    return _on_entries(schedule, [shifted(t, shift) for t in once])\n"
        ),
        tests=("tests/diffusion/test_times.py::test_shift",),
    ),
    Exhibit(
        name="largest-shift-off",
        bug=25,
        file="diffusion/times.py",
        text="many: int = 4096, low: float = 0.5, high: float = 1.15) -> float:\n",
        replacement="many: int = 4096, low: float = 0.5, high: float = 1.16) -> float:\n",
        tests=("tests/diffusion/test_times.py::test_shifts_for_resolutions",),
    ),
    Exhibit(
        name="level-embedding-of-another-spacing",
        bug=26,
        file="nn/embed.py",
        text="device=values.device) / max(half - self.shift, 1.0)\n",
        replacement="device=values.device) / max(half - 1.0, 1.0)\n",
        tests=("tests/nn/test_conditions.py::test_sinusoidal_is_the_formula",),
        note="Frequencies as in DDPM, whatever the network was trained with.",
    ),
    Exhibit(
        name="sines-and-cosines-exchanged",
        bug=26,
        file="nn/embed.py",
        text="    return torch.cat((cosine, sine) if cosine_first else (sine, cosine), -1)\n",
        replacement="    return torch.cat((cosine, sine), -1)\n",
        tests=("tests/nn/test_conditions.py::test_sinusoidal_is_the_formula",),
    ),
    Exhibit(
        name="level-one-step-on",
        bug=26,
        file="diffusion/parameterization.py",
        text="        return t * self.steps - 1\n",
        replacement="        return t * self.steps\n",
        tests=("tests/diffusion/test_parameterization.py::test_levels",),
    ),
)
