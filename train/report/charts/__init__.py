"""Pictures of gradient flow: canvas (their look, files), heat (depth against step), lines."""

from .canvas import SMALL, save, to_rgb, to_svg
from .heat import DELTA_SCALE, Field, heatmaps
from .lines import Curve, Guide, Panel, line_charts, loss_along

__all__ = [  # fmt: skip
    "DELTA_SCALE", "SMALL", "Curve", "Field", "Guide", "Panel", "heatmaps", "line_charts",
    "loss_along", "save", "to_rgb", "to_svg",
]  # fmt: skip
