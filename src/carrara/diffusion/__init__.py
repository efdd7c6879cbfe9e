"""The mathematics of diffusion: never imports a network, a file or a loop; the network is handed in.

The paper in one obvious place each: `Process.marginal` (forward in one step), `DenoisingLoss` (Algorithm 1),
`ancestral` (Algorithm 2), `vlb_terms` (the bound).
"""

from carrara.diffusion.adaptive import dopri
from carrara.diffusion.denoiser import Denoiser, Prediction
from carrara.diffusion.dpm import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m, dpmpp_3m_sde, dpmpp_sde
from carrara.diffusion.generator import DiffusionGenerator, SamplingSettings
from carrara.diffusion.guidance import ClassifierFree, Clip, Guidance, Plain, guide
from carrara.diffusion.likelihood import Bound, discretised_log_prob, kl, vlb_terms
from carrara.diffusion.loss import DenoisingLoss, LogitNormal, LogNormal, MinSNR, Steps, Uniform, Unit
from carrara.diffusion.multistep import adams, plms, pndm
from carrara.diffusion.parameterization import X0, Epsilon, Flow, IntegerStep, Karras, LogSigma, ScaledTime, V
from carrara.diffusion.process import Given, Learned, Posterior, Process, Transition
from carrara.diffusion.sampler import (
    Churn,
    alpha_coordinate,
    ancestral,
    ddim,
    euler_ancestral,
    heun,
    lcm,
    predictor_corrector,
    total_coordinate,
)
from carrara.diffusion.schedule import (
    Cosine,
    CosineBetas,
    GivenBetas,
    Linear,
    LinearBetas,
    ScaledLinearBetas,
    Schedule,
    Tabulated,
    VarianceExploding,
)
from carrara.diffusion.times import full, given, karras, leading, trailing, uniform
from carrara.diffusion.unipc import bh1, bh2, unipc

__all__ = [
    "Bound",
    "Churn",
    "ClassifierFree",
    "Clip",
    "Cosine",
    "CosineBetas",
    "Denoiser",
    "DenoisingLoss",
    "DiffusionGenerator",
    "Epsilon",
    "Flow",
    "Given",
    "GivenBetas",
    "Guidance",
    "IntegerStep",
    "Karras",
    "Learned",
    "Linear",
    "LinearBetas",
    "LogNormal",
    "LogSigma",
    "LogitNormal",
    "MinSNR",
    "Plain",
    "Posterior",
    "Prediction",
    "Process",
    "SamplingSettings",
    "ScaledLinearBetas",
    "ScaledTime",
    "Schedule",
    "Steps",
    "Tabulated",
    "Transition",
    "Uniform",
    "Unit",
    "V",
    "VarianceExploding",
    "X0",
    "adams",
    "alpha_coordinate",
    "ancestral",
    "bh1",
    "bh2",
    "ddim",
    "discretised_log_prob",
    "dopri",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler_ancestral",
    "full",
    "given",
    "guide",
    "heun",
    "karras",
    "kl",
    "lcm",
    "leading",
    "plms",
    "pndm",
    "predictor_corrector",
    "total_coordinate",
    "trailing",
    "uniform",
    "unipc",
    "vlb_terms",
]
