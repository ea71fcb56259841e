"""Pictures: poses in photos, grids of pictures, training curves. Pillow alone draws them."""

from querypose.visualization.grid import image_grid
from querypose.visualization.plots import plot_metrics
from querypose.visualization.poses import draw_poses, person_color

__all__ = ["draw_poses", "image_grid", "person_color", "plot_metrics"]
