"""Models of diffusers' layout: what its files say, as Carrara's own objects. It is never imported."""

from carrara.store.diffusers.scheduler import ForeignScheduler, read_scheduler, translate

__all__ = ["ForeignScheduler", "read_scheduler", "translate"]
