"""A parameterization that only foreign models have."""

from __future__ import annotations

from dataclasses import dataclass

from carrara.diffusion.parameterization import Coefficients, Karras, Parameterization
from carrara.diffusion.process import Scale

__all__ = ["NegativeKarras"]


@dataclass(frozen=True)
class NegativeKarras(Parameterization):
    """EDM's preconditioning with the sign of F turned: the "v_prediction" of EDM schedulers and of SVD.

    For `sigma_data` 1 and alpha = 1 it is the velocity of the variance-preserving path, which was meant.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        Karras(self.sigma_data)

    def __call__(self, alpha: Scale, sigma: Scale) -> Coefficients:
        same = Karras(self.sigma_data)(alpha, sigma)
        return same._replace(out=-same.out, of_x=-same.of_x, of_noise=-same.of_noise)
