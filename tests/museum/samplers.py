"""Samplers, guidance and what they start from."""

from __future__ import annotations

from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

_GAUSSIAN = "tests/oracle/test_gaussian.py::test_every_grid"
_ORDER = "tests/oracle/test_orders.py::test_order"
_LOCAL_ORDER = "tests/oracle/test_orders.py::test_local_order"

EXHIBITS = (
    Exhibit(
        name="previous-time-counted-not-read",
        bug=8,
        file="diffusion/sampler.py",
        text="        p = process.reverse(estimate, x, t, s, variance)\n        x = p.mean if s == 0",
        replacement=(
            "        equal = max(t - times[0] / (len(times) - 1), 0.0)\n"
            "        p = process.reverse(estimate, x, t, s if s == 0 else equal, variance)\n"
            "        x = p.mean if s == 0"
        ),
        tests=(f"{_GAUSSIAN}[ancestral, posterior-Linear]",),
        note="The time before t in a grid of equal strides, whatever the grid is.",
    ),
    Exhibit(
        name="steps-of-the-table-in-coarser-grids",
        bug=9,
        file="diffusion/sampler.py",
        text="        p = process.reverse(estimate, x, t, s, variance)\n        x = p.mean if s == 0",
        replacement=(
            "        p = process.reverse(estimate, x, t, max(s, t - 1 / 1000), variance)\n        x = p.mean if s == 0"
        ),
        tests=(f"{_GAUSSIAN}[ancestral, posterior-LinearBetas]",),
        note="Right for the full table of 1000, and for it alone.",
    ),
    Exhibit(
        name="noise-in-the-last-step",
        bug=12,
        file="diffusion/sampler.py",
        text="        x = p.mean if s == 0 else p.mean + p.std * rng.normal_like(x)\n    return x\n\n\ndef ddim",
        replacement="        x = p.mean + p.std * rng.normal_like(x)\n    return x\n\n\ndef ddim",
        tests=("tests/paper/test_ddpm.py::test_algorithm_2",),
    ),
    Exhibit(
        name="order-lowered-for-some-lengths",
        bug=14,
        file="diffusion/dpm.py",
        text="        known = [(start, mean), *known[: order - 1]] if math.isfinite(start) else []\n",
        replacement=(
            "        known = [(start, mean), *known[: order - 1]] if math.isfinite(start) else []\n"
            "        known = known[:1] if len(times) % 3 == 0 else known\n"
        ),
        tests=(f"{_ORDER}[dpmpp_2m-Cosine-uniform]",),
        note="Grids of 3n - 1 strides are walked at order 1.",
    ),
    Exhibit(
        name="second-order-by-the-stride-before",
        bug=15,
        file="diffusion/dpm.py",
        text="    return [1.0] if len(nodes) == 1 else [1 - 1 / (2 * nodes[1]), 1 / (2 * nodes[1])]\n",
        replacement=(
            "    if len(nodes) == 1:\n"
            "        return [1.0]\n"
            "    share, other = 1 / (2 * nodes[1]), math.expm1(h * nodes[1]) / math.expm1(-h)\n"
            "    return [(1 - share) * other, share * other]\n"
        ),
        tests=(f"{_ORDER}[dpmpp_2m-Cosine-karras]",),
        note="exp(-h) - 1 with the h of the stride before: of order 2 where all strides are equal, else of order 1.",
    ),
    Exhibit(
        name="second-order-coefficient-not-halved",
        bug=15,
        file="diffusion/dpm.py",
        text="    return [1.0] if len(nodes) == 1 else [1 - 1 / (2 * nodes[1]), 1 / (2 * nodes[1])]\n",
        replacement="    return [1.0] if len(nodes) == 1 else [1 - 1 / nodes[1], 1 / nodes[1]]\n",
        tests=(f"{_ORDER}[dpmpp_2m-Cosine-uniform]",),
    ),
    Exhibit(
        name="second-order-sign-turned",
        bug=15,
        file="diffusion/dpm.py",
        text="[1 - 1 / (2 * nodes[1]), 1 / (2 * nodes[1])]",
        replacement="[1 + 1 / (2 * nodes[1]), -1 / (2 * nodes[1])]",
        tests=(f"{_ORDER}[dpmpp_2m-Cosine-uniform]",),
    ),
    Exhibit(
        name="second-order-ratio-upside-down",
        bug=15,
        file="diffusion/dpm.py",
        text="    return [1.0] if len(nodes) == 1 else [1 - 1 / (2 * nodes[1]), 1 / (2 * nodes[1])]\n",
        replacement="    return [1.0] if len(nodes) == 1 else [1 - nodes[1] / 2, nodes[1] / 2]\n",
        tests=(f"{_LOCAL_ORDER}[dpmpp_2m-Linear]",),
        note="Of order 2 on every usual grid; only a stride after longer ones tells.",
    ),
    Exhibit(
        name="noise-added-to-all-of-the-data",
        bug=16,
        file="diffusion/process.py",
        text="        x_t: Tensor = like(alpha_t, x) * x + like(sigma_t, x) * noise\n",
        replacement="        x_t: Tensor = x + like(sigma_t, x) * noise\n",
        tests=("tests/paper/test_ddpm.py::test_equation_4_in_one_step",),
    ),
    Exhibit(
        name="noise-of-the-whole-grid-for-a-part",
        bug=17,
        file="diffusion/edit.py",
        text="else process.diffuse(x, left[0], noise)\n",
        replacement="else process.diffuse(x, times[1], noise)\n",
        tests=("tests/diffusion/test_edit.py::test_a_picture_sampled_anew_in_part",),
        note="The picture is made as noisy as for another part of the grid.",
    ),
    Exhibit(
        name="one-stride-less-than-asked-for",
        bug=17,
        file="diffusion/edit.py",
        text="    strides = math.ceil(strength * (len(times) - 1) - 1e-9)\n",
        replacement="    strides = int(strength * (len(times) - 1))\n",
        tests=("tests/diffusion/test_edit.py::test_partial_keeps_the_last_strides",),
    ),
    Exhibit(
        name="known-part-at-the-noise-before",
        bug=17,
        file="diffusion/edit.py",
        text="            x = put_back((yield from sampler(process, x, (t, s), rng=rng)), s)\n",
        replacement="            x = put_back((yield from sampler(process, x, (t, s), rng=rng)), t if s > 0 else s)\n",
        tests=("tests/diffusion/test_known_part.py",),
    ),
    Exhibit(
        name="seeds-ignored",
        bug=20,
        file="diffusion/sampler.py",
        text="    return x + drawn * rng.normal_like(x) if drawn > 0 else x\n",
        replacement="    return x + drawn * torch.randn_like(x) if drawn > 0 else x\n",
        tests=("tests/diffusion/test_sampling.py::test_seeds",),
    ),
    Exhibit(
        name="rows-of-a-batch-end-elsewhere",
        bug=21,
        file="diffusion/schedule.py",
        text="        if bool(exact.all()):  # as nearly always; nothing lies between\n"
        "            return alphas[entry], sigmas[entry]\n",
        replacement="        if bool(exact.all()):  # as nearly always; nothing lies between\n"
        "            if t.ndim:\n"
        "                entry = entry.where(entry > 1, 0)\n"
        "            return alphas[entry], sigmas[entry]\n",
        tests=("tests/diffusion/test_spacing.py::test_an_entry_is_the_same_alone_and_in_a_batch",),
        note="A batch with a time for each row takes alpha = 1 where a single one takes the table's first entry.",
    ),
    Exhibit(
        name="eta-forgets-what-is-left",
        bug=24,
        file="diffusion/sampler.py",
        text="drawn = eta * float(process.posterior_var(t, s)) ** 0.5 if eta > 0 else 0.0\n",
        replacement="drawn = min(eta * float(process.step(s, t)[1]) ** 0.5, process.schedule(s)[1])\n",
        tests=(f"{_GAUSSIAN}[ddim 1-LinearBetas]",),
        note="sigma^2 without (1 - alpha_bar_s) / (1 - alpha_bar_t), and a clamp that hides what would be negative.",
    ),
    Exhibit(
        name="second-evaluation-at-the-old-level",
        bug=27,
        file="diffusion/sampler.py",
        text="            _, ahead = yield from path.slope(x, s, inner=True)\n"
        "            x = path.along(y, (slope + ahead) / 2, t, s)\n"
        "    return x\n",
        replacement="            _, ahead = yield from path.slope(x, t, inner=True)\n"
        "            x = path.along(y, (slope + ahead) / 2, t, s)\n"
        "    return x\n",
        tests=(f"{_ORDER}[heun-Cosine-uniform]",),
    ),
    Exhibit(
        name="one-copy-without-the-mask",
        bug=27,
        file="nn/attention.py",
        text="    if allowed is not None:\n",
        replacement="    if False:\n",
        tests=("tests/nn/test_conditions.py::test_short_attention_agrees_with_the_fused_kernel",),
        note="Of two ways to compute one thing, one is mended and the other forgotten.",
    ),
    Exhibit(
        name="one-start-of-a-multistep-method",
        bug=27,
        file="diffusion/multistep.py",
        text="            x = path.along(y, combined([1 / 2, 1 / 2], [slope, ahead]), t, s)\n",
        replacement="            x = path.along(y, combined([0, 1], [slope, ahead]), t, s)\n",
        tests=(f"{_GAUSSIAN}[plms-Linear]",),
    ),
    Exhibit(
        name="one-noise-for-the-batch",
        bug=67,
        file="rng.py",
        text="        return [keyed(*row, self._draws) for row in self._rows]\n",
        replacement=(
            "        first = keyed(*self._rows[0], self._draws)\n"
            "        return [first for _ in self._rows]  # one after the other\n"
        ),
        tests=("tests/test_rng.py::test_rows_are_independent_of_their_neighbours",),
        note="A picture depends on its place in the batch, as with one generator for all of it.",
    ),
    Exhibit(
        name="steps-as-short-as-the-worst-row-needs",
        bug=67,
        file="diffusion/ode_likelihood.py",
        text="    return after, gained, found[-1], torch.maximum(of_y, of_log)\n",
        replacement="    return after, gained, found[-1], torch.maximum(of_y, of_log).max().expand(len(y))\n",
        tests=("tests/oracle/test_ode_likelihood.py::test_rows_do_not_know_each_other",),
        note="Adaptive steps for the whole batch: a row's figure depends on its companions.",
    ),
    Exhibit(
        name="prior-noise-by-the-first-seed",
        bug=67,
        file="system.py",
        text="        rng = Rng.seeds(request.seeds)\n",
        replacement="        rng = Rng.seeds([request.seeds[0] + i for i in range(len(request.seeds))])\n",
        tests=("tests/test_system.py::test_a_picture_is_its_seeds_wherever_it_stands",),
        note="Right for seeds that count on, and for no others.",
    ),
    Exhibit(
        name="seed-zero-is-none",
        bug=34,
        file="system.py",
        text="            tuple(seeds),\n",
        replacement=("            tuple(seed or int(torch.randint(2**31, ())) for seed in seeds),\n"),
        tests=("tests/test_system.py::test_seed_zero_is_a_seed_and_two_seeds_differ",),
    ),
)
