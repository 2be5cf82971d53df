"""Eidetic: how much of its training set does a text-to-image model give back?"""

from setuptools import setup

ROOMS = ("kernels", "store", "models", "data", "training", "attacks", "duplicates", "matching", "results", "forgetting")

setup(
    name="eidetic",
    version="0.1.0",
    description="Measures how much of its training set a text-to-image model gives back",
    license="Apache-2.0",
    python_requires=">=3.11",
    # Named one by one: the folders are what workers import, and nothing else may come along by accident.
    packages=["pipelines", "transforms", *(f"transforms.{room}" for room in ROOMS), "sql", "demo"],
    package_data={
        "pipelines": ["rates.json"],
        "transforms.results": ["*.j2", "*.css", "*.js"],
        "sql": ["*/*.sql", "*/*.toml", "*.toml"],
        "demo": ["*.toml", "*.txt", "sweeps/*.toml", "models/*.json", "models/*/*", "models/*/*/*"],
    },
    install_requires=[
        "accelerate>=1.15",
        "apache-beam>=2.77",
        "diffusers>=0.42",
        "duckdb>=2.0",
        "faiss-cpu>=1.15",
        "grpcio>=1.71",
        "img2dataset>=1.47",
        "jinja2>=3.1",
        "numpy>=2.0",
        "open-clip-torch>=3.3",
        "pillow>=12.0",
        "protego>=0.7",
        "pyarrow>=25.0",
        "scipy>=1.17",
        "threadpoolctl>=3.6",
        "torch>=2.14",
        "tqdm>=4.67",
        "transformers>=5.23",
        "urllib3>=2.5",
    ],
    extras_require={
        # The embedded default draws its corpus with these.
        "demo": ["simple-icons-pack>=16.36", "resvg-py>=0.5"],
        "dataflow": ["apache-beam[gcp]>=2.77", "gcsfs>=2026.10"],
        # Lakes and models behind gs:// and s3://.
        "gs": ["gcsfs>=2026.10"],
        "s3": ["s3fs>=2026.9"],
        # Private training in sweeps.
        "privacy": ["opacus>=1.6"],
        "test": [
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff",
            "mypy",
            "hypothesis>=6.155",
            "gcp-storage-emulator",
            "moto[s3]>=5.2",
            "flask>=3.1",
            "flask-cors>=6.0",
            "playwright>=1.65",
            "axe-playwright-python>=0.1.8",
        ],
    },
    entry_points={"console_scripts": ["eidetic = pipelines.cli:script"]},
)
