"""What a network should predict, and what should count: KL(data || model) after a short training (docs/choosing.md).

Same network, data, draws and number of steps; only the parameterization and the weight differ. Weights are stated for
what their papers state them for and mean the same in every parameterization. PerLogSNR(P2(1, 0)) is the bound itself.
"""

from __future__ import annotations

from plane import training
from why_training import divergence

from carrara.diffusion import P2, X0, Epsilon, Flow, Karras, MinSNR, PerLogSNR, SigmoidWeight, TruncatedSNR, Unit, V

BOUND = PerLogSNR(P2(1.0, 0.0))
CHOICES = {
    "noise, unit": (Epsilon(), Unit()),
    "x, unit": (X0(), Unit()),
    "v, unit": (V(), Unit()),
    "flow, unit": (Flow(), Unit()),
    "Karras, unit": (Karras(0.8), Unit()),
    "v, min-SNR": (V(), MinSNR()),
    "v, truncated SNR": (V(), TruncatedSNR()),
    "v, sigmoid": (V(), PerLogSNR(SigmoidWeight(0.0))),
    "v, bound": (V(), BOUND),
    "noise, bound": (Epsilon(), BOUND),
}


def figures(names, steps, seeds, strides, points):
    """KL(data || model) in nats of each choice and seed."""
    found = {}
    for name in names:
        predict, weight = CHOICES[name]
        trained = [list(training(steps, predict, weight, seed))[-1][1] for seed in range(seeds)]
        found[name] = [divergence(denoiser, strides, points)["kl"] for denoiser in trained]
    return found


if __name__ == "__main__":
    for name, values in figures(["noise, unit", "v, unit", "v, min-SNR"], 200, 1, 20, 60).items():
        print(f"{name:20}", [round(value, 3) for value in values])
