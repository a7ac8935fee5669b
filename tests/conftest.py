"""Every test sees 8 CPU devices, strict shapes and one compile cache."""

import gc
import os
import pathlib

import jax
import jaxtyping
import numpy as np
import pytest

# Signatures are checked in these modules: before anything imports them, and NumPy's arrays count as JAX's.
CHECKED = ("diffusion", "losses", "masked", "models", "objectives")
jaxtyping.Array = jax.Array | np.ndarray
jaxtyping.install_import_hook([f"magvid.{name}" for name in CHECKED], "helpers_typing.checked")

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = pathlib.Path(os.environ.get("MAGVID_SHARED", ROOT.parent / "shared"))

# Many small programs run once each: XLA's optimisation would take several times as long as they do. Processes that tests
# start do the same, so that equal programs give equal bits.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)

# Tracing makes objects by the million, which Python would look through again and again: a twelfth of the time
gc.set_threshold(100_000, 20, 50)

# Made-up devices wait for each other: on a busy machine for longer than XLA has them do before it aborts the process. And in JAX
# 0.10 XLA's older emitters compile a training step in half to three quarters of the time; later ones know no such flag.
flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_collective_call_terminate_timeout_seconds=900"]
flags += ["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []
os.environ["XLA_FLAGS"] = " ".join(flags).strip()

# Of the processes that tests start, pytest's workers among them: Linux hands out memory in huge pages (docs: benchmarks/README.md)
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# All that is compiled, small programs too, is compiled once for all workers and the processes that tests start
jax.config.update("jax_compilation_cache_dir", os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")))
least = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
jax.config.update("jax_persistent_cache_min_compile_time_secs", float(least))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of golden files; tests that use it carry the marker `full`, and a missing folder is a failure."""
    assert SHARED.is_dir(), f"{SHARED} is missing: set MAGVID_SHARED to the folder that holds golden/"
    return SHARED


@pytest.fixture
def optimised():
    """For tokens that must equal recorded ones: where two are all but equally likely, the last bits decide."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
