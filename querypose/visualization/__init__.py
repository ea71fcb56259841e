"""Pictures: poses in photos, grids of pictures, charts. Pillow alone draws them."""

from querypose.visualization.dot_chart import save_dot_chart
from querypose.visualization.grid import image_grid
from querypose.visualization.plots import plot_metrics, plot_precisions
from querypose.visualization.poses import draw_poses, drawn_visibilities, person_color

__all__ = [
    "draw_poses",
    "drawn_visibilities",
    "image_grid",
    "person_color",
    "plot_metrics",
    "plot_precisions",
    "save_dot_chart",
]
