"""Pictures: poses in photos and grids of pictures by Pillow. Charts by matplotlib are in `visualization.charts`."""

from querypose.visualization.grid import image_grid
from querypose.visualization.poses import draw_poses, drawn_visibilities, person_color
from querypose.visualization.samples import draw_sample, image_of_sample

__all__ = ["draw_poses", "draw_sample", "drawn_visibilities", "image_grid", "image_of_sample", "person_color"]
