"""The GLM objective: pure functions of tokens and a keyed generator."""

from glm_dist.objective.blank_infill import Sample, assemble, blank_infill
from glm_dist.objective.plan import InfillPlan, draw_plan, piece_rng
from glm_dist.objective.settings import (
    BlankInfillSettings,
    Mode,
    ObjectiveSettings,
    reference_settings,
)
from glm_dist.objective.short_sequences import blank_infill_batch
from glm_dist.objective.supervised import (
    filled_sample,
    labelled_sample,
    mask_places,
    supervised_sample,
)
from glm_dist.objective.visibility import dense_mask, flex_mask_mod, visible, visible_keys

__all__ = [
    "BlankInfillSettings",
    "InfillPlan",
    "Mode",
    "ObjectiveSettings",
    "Sample",
    "assemble",
    "blank_infill",
    "blank_infill_batch",
    "dense_mask",
    "draw_plan",
    "filled_sample",
    "flex_mask_mod",
    "labelled_sample",
    "mask_places",
    "piece_rng",
    "reference_settings",
    "supervised_sample",
    "visible",
    "visible_keys",
]
