"""Devices to compile for: those simulated here, and some that are not here.

The compiler of TPUs is libtpu, that of CUDA JAX's plugin; both come from PyPI.
"""

import importlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

# what the compiler has to know of a GPU that it cannot ask
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 85000000000
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


class Target(NamedTuple):
    """What to compile for.

    Attributes:
      fsdp: over how many devices a batch and the rows of a kernel lie.
      tp: over how many the heads and the hidden neurons lie.
      package: that brings the compiler.
      topology: of devices that are not here, for ``get_topology_desc``.
      options: of the compiler.
    """

    fsdp: int
    tp: int
    package: str
    topology: Mapping[str, str] | None
    options: Mapping[str, Any]


V5E = {"platform": "tpu", "topology_name": "v5e:2x4"}
V5P = {"platform": "tpu", "topology_name": "v5p:4x4x4"}
NO_TPU = {  # libtpu asks no server, and leaves a TPU to other processes
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
CUDA = {
    "platform": "cuda",
    "topology_name": "H100",
    "topology": "1x1x8",
    "target_config": H100,
}
QUICK = {"xla_backend_optimization_level": 0}  # of machine code alone
# otherwise all-reduces are laid end to end into one array
APART = {"xla_gpu_all_reduce_combine_threshold_bytes": 0}
TARGETS = {
    "cpu x8": Target(4, 2, "jaxlib", None, QUICK),
    "tpu v5e:2x4": Target(4, 2, "libtpu", V5E, {}),
    "tpu v5p:4x4x4": Target(16, 4, "libtpu", V5P, {}),
    "cuda H100 x8": Target(4, 2, "jax_plugins.xla_cuda12", CUDA, QUICK | APART),
}


def mesh_of(target: Target) -> Mesh:
    """Return the devices of a target; raises where its compiler is missing."""
    importlib.import_module(target.package)
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    if target.topology is None:
        devices = jax.devices()
    else:
        devices = topologies.get_topology_desc(**target.topology).devices
    return Mesh(np.array(devices).reshape(target.fsdp, target.tp), ("fsdp", "tp"))
