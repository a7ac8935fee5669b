"""magvid is used from a clone: `pip install -e .`. Every dependency stands here with its reason."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

CORE = [
    "jax>=0.10.1,<0.13",  # arrays, jit, sharding; 0.10 is the last for Python 3.11
    "flax>=0.12.4,<0.13",  # Linen modules
    "optax>=0.2.6,<0.3",  # optimisers and schedules
    "orbax-checkpoint>=0.12,<0.13",  # sharded, asynchronous checkpoints
    "ml_collections>=1.1",  # configs
    "absl-py>=2.1",  # command-line flags
    "numpy>=2.0",
    "scipy>=1.14",  # linear algebra of the metrics
    "einops>=0.8.1",  # reshapes by name; the U-Nets to come need it, nothing does yet
    "chex>=0.1.90",  # assertions on arrays
    "jaxtyping>=0.3",  # shapes in signatures
    "rich>=13",  # progress bar and tables (Flax needs it too)
    "grain>=0.2.16,<0.3",  # data loading: sharded, shuffled, exactly resumable
    "array_record>=0.8.1; sys_platform != 'win32'",  # shards of the token cache: random access, checksums (grain's own format)
    "av>=14",  # all video files: decoding and encoding, FFmpeg included
    "pillow>=10.1",  # PNG and GIF
    "safetensors>=0.5",  # files of adapters, and of other libraries' weights without torch
    "tensorboardX>=2.6.4",  # TensorBoard event files without TensorFlow
]

EXTRAS = {
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "tfds": [
        "tensorflow-datasets>=4.9.10",  # data sets by name, read without TensorFlow
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
    ],
    "xlsx": [
        "openpyxl>=3.1",  # Animal Kingdom says in a spreadsheet which animals its videos show
    ],
    "flow": [
        "opencv-python-headless>=4.10",  # optical flow without weights, for tools/measure_motion.py
    ],
    "convert": [
        "transformers>=5.5,<6",  # tokenizers and image processors
    ],
    "parity": [  # the reference implementations that full tests compare with
        "torch>=2.6",
        "torchvision>=0.21",  # ResNet-50 and VGG-16
        "diffusers>=0.35",
        "accelerate>=1.0",  # diffusers loads and builds its pipelines with it
        "transformers>=5.5,<6",
        "opencv-python-headless>=4.10",  # the tool's optical flow
    ],
    "test": [
        "beartype>=0.21",  # checks the shapes in signatures while tests run
        "pytest>=8",
        "pytest-xdist>=3.6",  # a test of JAX compiles on one core most of its time: one worker for each
        "scikit-image>=0.24",  # an independent SSIM
        "openpyxl>=3.1",  # writes the tiny spreadsheet that its reader is tested on
        "tensorflow-datasets>=4.9.10",  # prepares the tiny data sets that its reader is tested on, without TensorFlow
        "importlib_resources",
    ],
}

setup(
    name="magvid",
    version="0.1.0",
    description="Conditional video generators in JAX/Flax: MAGVIT, MAVIN, AID and MagDiff",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["magvid", "magvid.*"]),
    package_data={"magvid": ["*.css"]},
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require=EXTRAS,
    # an editable install puts the clone itself on the path: with setuptools' finder, a clone called magvid would hide the
    # package from scripts in the folder above
    options={"editable_wheel": {"mode": "compat"}},
    entry_points={"console_scripts": ["magvid = magvid.__main__:console"]},
)
