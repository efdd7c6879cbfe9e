"""Schedulers from elsewhere: what a configuration says, and what is made of it."""

from __future__ import annotations

from museum.exhibit import Exhibit

__all__ = ["EXHIBITS"]

_MODELS = "tests/parity/test_configurations.py::test_what_the_models_are"

EXHIBITS = (
    Exhibit(
        name="foreign-key-ignored",
        bug=5,
        file="store/diffusers/keys.py",
        text="            if key not in elsewhere:\n",
        replacement="            if False:\n",
        tests=("tests/parity/test_configurations.py::test_one_sentence_says_what_is_wrong",),
    ),
    Exhibit(
        name="foreign-rescaling-ignored",
        bug=5,
        file="store/diffusers/tables.py",
        text='    zero = keys.flag("rescale_betas_zero_snr")\n',
        replacement='    zero = keys.flag("rescale_betas_zero_snr") and False\n',
        tests=("tests/parity/test_configurations.py::test_what_cannot_be_said_together_is_refused",),
    ),
    Exhibit(
        name="foreign-final-alpha-always-one",
        bug=22,
        file="store/diffusers/common.py",
        text="        return 0.0 if keys.flag(key) else table.t_min\n",
        replacement="        return 0.0 if keys.flag(key) else 0.0\n",
        tests=(_MODELS,),
    ),
    Exhibit(
        name="foreign-shift-twice",
        bug=25,
        file="store/diffusers/spacing.py",
        text="            grid = functools.partial(shift, inner=grid, by=self.dynamic.by(tokens, mu))\n",
        replacement="            grid = functools.partial(shift, inner=grid, by=self.dynamic.by(tokens, mu) ** 2)\n",
        tests=(_MODELS,),
        note="Two shifts by s are one by s^2.",
    ),
    Exhibit(
        name="foreign-level-not-rounded",
        bug=30,
        file="store/diffusers/level.py",
        text="        return self.inner(process, t).round()\n",
        replacement="        return self.inner(process, t)\n",
        tests=("tests/parity/test_equal.py::test_the_network_hears_the_same_numbers",),
        note="Networks that heard whole numbers are told fractions.",
    ),
)
