"""QueryPose: end-to-end multi-person pose estimation in the detectron2 manner.

Importing the package registers the datasets by their usual names and the meta-architectures and backbones, as
importing a detectron2 project does, and declares every YAML key; no file is touched by it.
"""

from querypose import data as data
from querypose import engine as engine
from querypose import evaluation as evaluation
from querypose import modeling as modeling
from querypose.deployment import load as load

__version__ = "0.1.0"
