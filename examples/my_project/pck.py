"""A metric: the share of annotated keypoints that some detection finds."""
