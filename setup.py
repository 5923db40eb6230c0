"""Installation: `pip install .`"""

import pathlib
import runpy

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = runpy.run_path(str(ROOT / "prompt_tuning" / "versions.py"))[
    "__version__"]

setuptools.setup(
    name="prompt_tuning",
    version=VERSION,
    description="Soft prompts, generated prompts and prefixes for frozen "
    "language models, in JAX.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(include=["prompt_tuning*"]),
    package_data={
        "prompt_tuning": [
            "configs/**/*.gin", "data/templates/*.txt", "scripts/*.sh",
            "pretrained/*/*"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py>=2.1",
        "autopep8>=2,<3",  # MBPP's stage 2 for Llama-3-8B, as in the original
        "flax>=0.12,<0.13",
        "gguf>=0.17,<1",
        "gin-config>=0.5",
        "grain>=0.2.10",
        "huggingface_hub>=1.5,<3",  # push and pull
        "jax>=0.9,<0.13",
        "matplotlib>=3.8",  # the learning curve
        "msgpack>=1.0",  # the index of a T5X checkpoint
        "ml_dtypes>=0.4",
        "nltk>=3.9,<4",  # METEOR and Porter's stems
        "numpy>=1.26",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "parso>=0.8,<1",  # statements in generated code, which may be broken
        "rich>=13",
        "rouge-score>=0.1.2,<1",  # what papers on summaries score with
        "sacrebleu>=2.3,<3",
        "safetensors>=0.5",
        "scipy>=1.12",
        "sentencepiece>=0.2",
        "seqio>=0.0.20",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.8",
        "tensorstore>=0.1.60",
        "tokenizers>=0.21,<1",
    ],
    extras_require={
        "test": [
            "hypothesis>=6", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9"],
        # Live comparisons with Hugging Face and with WebNLG's words. Get
        # torch's CPU build first where there is no GPU: the default one
        # brings gigabytes of CUDA.
        "parity": [
            "peft>=0.17", "torch>=2.6", "transformers>=4.56",
            "unidecode>=1.3"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        # `python -m t5x.train` with our modules; see docs/t5x.md. No package
        # index has T5X and Flaxformer, so they are named by repository, at the
        # commits that tests/t5x ran with. An index refuses to take a
        # distribution that names repositories: publish without these two.
        "t5x": [
            "fiddle>=0.3",
            "flaxformer @ git+https://github.com/google/flaxformer"
            "@399ea3a85e9807ada653fd0de1a9de627eb0acde",
            "t5x @ git+https://github.com/google-research/t5x"
            "@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16",
            "tensorboard>=2.18",  # T5X imports it and does not ask for it
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
