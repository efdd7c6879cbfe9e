"""Which function reads which scheduler class."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from carrara.store.diffusers.entries import read_ddim, read_ddpm, read_lcm, read_pndm
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.paths import read_edm_euler, read_edm_multistep, read_flow_euler, read_flow_heun
from carrara.store.diffusers.scheduler import ForeignScheduler
from carrara.store.diffusers.sigmas import read_dpm_sde, read_euler, read_euler_ancestral, read_heun, read_lms
from carrara.store.diffusers.solvers import read_multistep, read_singlestep, read_unipc

__all__ = ["CLASSES"]

CLASSES: Mapping[str, Callable[[Keys], ForeignScheduler]] = {
    "DDIMParallelScheduler": read_ddim,
    "DDIMScheduler": read_ddim,
    "DDPMParallelScheduler": read_ddpm,
    "DDPMScheduler": read_ddpm,
    "DPMSolverMultistepScheduler": read_multistep,
    "DPMSolverSDEScheduler": read_dpm_sde,
    "DPMSolverSinglestepScheduler": read_singlestep,
    "EDMDPMSolverMultistepScheduler": read_edm_multistep,
    "EDMEulerScheduler": read_edm_euler,
    "EulerAncestralDiscreteScheduler": read_euler_ancestral,
    "EulerDiscreteScheduler": read_euler,
    "FlowMatchEulerDiscreteScheduler": read_flow_euler,
    "FlowMatchHeunDiscreteScheduler": read_flow_heun,
    "HeunDiscreteScheduler": read_heun,
    "LCMScheduler": read_lcm,
    "LMSDiscreteScheduler": read_lms,
    "PNDMScheduler": read_pndm,
    "UniPCMultistepScheduler": read_unipc,
}
