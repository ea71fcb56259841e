"""Installs the package `querypose`; the command-line tools stay in tools/, as in detectron2."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "querypose/__init__.py").read_text()).group(1)

setup(
    name="querypose",
    version=VERSION,
    description="End-to-end multi-person pose estimation in the detectron2 manner",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["querypose", "querypose.*"]),
    package_data={"querypose.analysis": ["report_page/*"], "querypose.deployment": ["web/*"]},
    install_requires=[
        "faster-coco-eval>=1.8",
        "fsspec",
        "fvcore",
        "huggingface_hub",
        "iopath",
        "matplotlib>=3.8",
        "numpy",
        "pillow",
        "pycocotools>=2.0.8",
        "pyyaml",
        "safetensors",
        "scipy",
        "setuptools",  # tensorboard's and fvcore's dependencies import it on Python 3.12 and later
        "submitit>=1.5",
        "tabulate",
        "tensorboard",
        "timm>=1.0",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm",
    ],
    extras_require={
        "app": ["gradio"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "report": ["plotly"],
        "s3": ["s3fs"],
        "trackers": ["mlflow", "wandb"],
        "video": ["opencv-python-headless"],
        "test": [
            "hypothesis",
            "mypy",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "pandas",
            "pytest>=8",
            "pytest-xdist",
            "ruff",
            "selenium",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
