"""Packaging of vlkd. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "vlkd" / "__init__.py").read_text())[1]
README = HERE / "README.md"

LANGUAGE = ["transformers>=4.45"]

setup(
    name="vlkd",
    version=VERSION,
    description="Distil vision-language models into small students that segment with your own words",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["vlkd", "vlkd.*"]),
    package_data={"vlkd": ["text/assets/**/*", "models/configs/*", "methods/*/README.md"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "open_clip_torch>=2.30",
        "timm>=1.0",
        "lightning>=2.4",
        "jsonargparse[signatures]>=4.35",
        "docstring-parser>=0.15",
        "torchmetrics>=1.4",
        "safetensors>=0.4.3",
        "scipy>=1.10",
        "numpy>=1.24",
        "pillow>=10.1",
        "rich>=13.0",
        "tensorboard>=2.14",
        "matplotlib>=3.8",
        "av>=12.0",
        # Wheels exist for these platforms only; elsewhere PyAV reads every video.
        "decord>=0.6.0; platform_machine == 'x86_64' and sys_platform == 'linux'",
        "decord>=0.6.0; platform_machine == 'AMD64' and sys_platform == 'win32'",
        "pycocotools>=2.0.7",
        "huggingface_hub>=0.23",
        "pyyaml>=6.0",
    ],
    extras_require={
        "language": LANGUAGE,
        "dev": ["pytest>=8.0", "ruff>=0.6", "mypy>=1.10", "types-PyYAML", *LANGUAGE],
    },
    entry_points={"console_scripts": ["vlkd = vlkd.engine.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
