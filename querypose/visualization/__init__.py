"""Pictures: poses in photos and grids of pictures by Pillow. Charts by matplotlib are in `visualization.charts`."""

from querypose.visualization.grid import image_grid
from querypose.visualization.poses import draw_poses, drawn_visibilities, person_color

__all__ = ["draw_poses", "drawn_visibilities", "image_grid", "person_color"]
