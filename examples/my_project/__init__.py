"""A project of one's own on QueryPose: importing it registers its parts, as importing a detectron2 project does."""
