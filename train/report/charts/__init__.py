"""Pictures of gradient flow: canvas (how they look, files), heat, lines (a chart a picture), panels (several)."""

from .canvas import SMALL, save, to_rgb, to_svg
from .heat import DELTA_SCALE, DELTA_UNIT, Field, heatmap, heatmaps
from .lines import delta_by_depth, loss_along, loss_curves, predicted_and_measured
from .panels import Curve, Guide, Panel, line_charts

__all__ = [
    "DELTA_SCALE",
    "DELTA_UNIT",
    "SMALL",
    "Curve",
    "Field",
    "Guide",
    "Panel",
    "delta_by_depth",
    "heatmap",
    "heatmaps",
    "line_charts",
    "loss_along",
    "loss_curves",
    "predicted_and_measured",
    "save",
    "to_rgb",
    "to_svg",
]
