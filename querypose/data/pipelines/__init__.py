"""What becomes of a record before the model, and how poses come back: the one object that INPUT.PIPELINE names.

`build_pipeline(cfg, is_train)` gives it to training, evaluation, demo and data viewer alike.
"""

from querypose.data.pipelines.dense_image import DenseImage
from querypose.data.pipelines.person_crops import PersonCrops
from querypose.data.pipelines.pipeline import PIPELINE_REGISTRY, Pipeline, build_pipeline
from querypose.data.pipelines.whole_image import WholeImage

__all__ = ["DenseImage", "PIPELINE_REGISTRY", "PersonCrops", "Pipeline", "WholeImage", "build_pipeline"]
